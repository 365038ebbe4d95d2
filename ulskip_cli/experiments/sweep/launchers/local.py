"""Workers as processes of this machine, one for each device."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path

from ulskip_cli.core.config_schema import LauncherConfig
from ulskip_cli.experiments.sweep.jobs import results_folder
from ulskip_cli.experiments.sweep.launchers.serve import WorkerSpec, serve, thread_environment, threads_per_worker

END_SECONDS = 5.0


class Local:
    """Workers as spawned processes; each process reads its environment variables when it starts."""

    def __init__(self, launcher: LauncherConfig, orders: WorkerSpec) -> None:
        self._devices = _devices()
        self.size = launcher.workers or max(1, len(self._devices))
        self._orders = orders.with_threads(threads_per_worker(launcher.threads, self.size))
        self._log = results_folder(orders.jobs).path.resolve() / "logs"
        self._processes: dict[int, tuple[BaseProcess, Connection]] = {}

    def start(self, number: int) -> None:
        """Start a worker's process; the process writes its output to a log file."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_main, args=(self._orders, number, theirs, str(self._log)), daemon=True)
        variables = thread_environment(self._orders.threads)
        if self._devices:
            variables["CUDA_VISIBLE_DEVICES"] = self._devices[number % len(self._devices)]
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)  # a spawned process inherits them
        try:
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        self._processes[number] = process, ours

    def is_alive(self, number: int) -> bool:
        """True while the worker's process is alive."""
        return number in self._processes and self._processes[number][0].is_alive()

    def exit_message(self, number: int) -> str | None:
        """Return the message that the worker sent through its pipe."""
        connection = self._processes[number][1]
        try:
            return str(connection.recv()) if connection.poll() else None
        except EOFError:
            return None

    def end(self) -> None:
        """Terminate all workers; their finished batches are stored."""
        for process, _ in self._processes.values():
            process.terminate()
        for process, connection in self._processes.values():
            process.join(END_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()


def _main(orders: WorkerSpec, number: int, told: Connection, log: str) -> None:
    Path(log).mkdir(parents=True, exist_ok=True)
    with (Path(log) / f"worker-{number}.log").open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told.send(serve(orders))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _devices() -> list[str]:
    """Return the CUDA devices as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return visible[:count] if visible else [str(index) for index in range(count)]
