"""Launchers run the command `ulskip sweep ... --since ROWS` in N processes, on this machine, on
Slurm or on Ray.

Each process is a worker. Workers claim points by lock files, so any number of them share a folder.
Slurm and Ray restart a lost worker; `Local` restarts its own.
"""

import importlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ulskip_cli.core.config_schema import LauncherConfig
from ulskip_cli.core.errors import UsageError, one_line

# A worker ends when its standard input is closed, which happens when its parent dies.
END_WITH_STDIN = "ULSKIP_END_WITH_STDIN"
CONNECT_SECONDS = 10.0
END_SECONDS = 5.0
MINUTES = 24 * 60  # of a Slurm job


class Local:
    """Workers as processes of this machine, one for each device."""

    def __init__(
        self, launcher: LauncherConfig, command: Sequence[str], logs: Path, workers: int
    ) -> None:
        """Start the workers; each writes its output to a file in `logs`."""
        devices = _devices()
        size = min(workers, launcher.workers or max(1, len(devices)))
        self._command, self._logs, self._retries = command, logs, [launcher.max_retries] * size
        environment = _environment(_threads(launcher.threads, size))
        chosen = [{"CUDA_VISIBLE_DEVICES": device} for device in devices] or [{}]
        self._environments = [environment | chosen[i % len(chosen)] for i in range(size)]
        logs.mkdir(parents=True, exist_ok=True)
        self._processes = [self._start(number) for number in range(size)]

    def _start(self, number: int) -> "subprocess.Popen[bytes]":
        with (self._logs / f"worker-{number}.log").open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environments[number],
            )

    def alive(self) -> int:
        """Restart workers that a signal ended, and return how many workers run."""
        for number, process in enumerate(self._processes):
            if (process.poll() or 0) < 0 and self._retries[number]:
                self._retries[number] -= 1
                self._processes[number] = self._start(number)
        return sum(process.poll() is None for process in self._processes)

    def end(self) -> None:
        """Terminate all workers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class WorkerJob:
    """A worker as a job of submitit; a job that Slurm preempts or that runs out of time is queued
    again.
    """

    def __init__(self, command: Sequence[str], threads: int | None) -> None:
        self.command, self.threads, self.folder = command, threads, str(Path.cwd())

    def __call__(self) -> None:
        """Run the command; raise CalledProcessError if it fails."""
        run_worker(self.command, self.threads, self.folder)

    def checkpoint(self) -> object:
        """Return the same job, which continues with the unfinished points."""
        return _imported("submitit").helpers.DelayedSubmission(self)


class Submitit:
    """Workers as Slurm jobs, or as processes of this machine if Slurm is missing."""

    def __init__(
        self, launcher: LauncherConfig, command: Sequence[str], logs: Path, workers: int
    ) -> None:
        """Submit the jobs; raise UsageError if submitit is not installed or rejects an option."""
        submitit = _imported("submitit")
        size = min(workers, launcher.workers or 1)
        cluster = None if launcher.executor == "auto" else launcher.executor
        options = {"timeout_min": MINUTES, "name": "ulskip", **(launcher.options or {})}
        (logs / "submitit").mkdir(parents=True, exist_ok=True)
        try:
            # submitit loads pickles from its folder, so the folder must be new and writable by this
            # user only.
            folder = tempfile.mkdtemp(dir=logs.resolve() / "submitit")
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            on_slurm = executor.cluster == "slurm"  # Slurm assigns separate cores to each job
            if launcher.threads and on_slurm:
                options.setdefault("cpus_per_task", launcher.threads)
            executor.update_parameters(**options)
        except Exception as error:
            raise _refused("submitit", "launcher.executor and launcher.options", error) from None
        threads = options.get("cpus_per_task") if on_slurm else _threads(launcher.threads, size)
        self._jobs = [executor.submit(WorkerJob(command, threads)) for _ in range(size)]

    def alive(self) -> int:
        """Return how many jobs are queued or run."""
        return sum(not job.done() for job in self._jobs)

    def end(self) -> None:
        """Cancel unfinished jobs."""
        for job in self._jobs:
            job.cancel()


class Ray:
    """Workers as tasks on a Ray cluster; without an address, Ray starts a cluster on this
    machine.
    """

    def __init__(
        self, launcher: LauncherConfig, command: Sequence[str], logs: Path, workers: int
    ) -> None:
        """Connect to a cluster and submit the tasks; raise UsageError if ray or the cluster is
        missing.
        """
        ray = self._ray = _imported("ray")
        address = launcher.address or os.environ.get("RAY_ADDRESS")
        if address is None:
            # With Ray's own niceness, other processes would slow the timings.
            os.environ.setdefault("RAY_worker_niceness", "0")
        try:
            _check_reachable(address)
            ray.init(
                address=address,
                ignore_reinit_error=True,
                logging_level=logging.ERROR,
                log_to_driver=False,
                include_dashboard=False if address is None else None,
            )
        except Exception as error:
            raise _refused("ray", f"launcher.address={address}", error) from None
        devices = int(ray.cluster_resources().get("GPU", 0))
        size = min(workers, launcher.workers or max(1, devices))
        threads = _threads(launcher.threads, size)
        options = {
            "num_cpus": threads or 1,
            "num_gpus": 1 if devices else 0,
            "max_retries": launcher.max_retries,
            "retry_exceptions": [subprocess.CalledProcessError],
            **(launcher.options or {}),
        }
        try:
            task = ray.remote(run_worker).options(**options)
        except (ValueError, TypeError) as error:
            ray.shutdown()
            raise _refused("ray", "launcher.options", error) from None
        folder = str(Path.cwd())
        self._tasks = [task.remote(command, threads, folder) for _ in range(size)]

    def alive(self) -> int:
        """Return how many tasks are queued or run."""
        done, _ = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        return len(self._tasks) - len(done)

    def end(self) -> None:
        """Cancel unfinished tasks and disconnect."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


POOLS: dict[str, type[Local | Submitit | Ray]] = {
    "local": Local,
    "submitit": Submitit,
    "ray": Ray,
}


def run_worker(command: Sequence[str], threads: int | None, folder: str) -> None:
    """Run a worker's command until it ends; raise CalledProcessError if a signal ends it.

    The worker ends if this process dies, because this process holds the other end of its standard
    input.
    """
    environment = _environment(threads)
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.PIPE) as process:
        code = process.wait()
    if code < 0:
        raise subprocess.CalledProcessError(code, list(command))


def worker_command(words: Sequence[str], since: int) -> list[str]:
    """Return the command of a worker: the words of the sweep, and the number of rows before the
    sweep began.
    """
    return [sys.executable, "-m", "ulskip_cli", "sweep", *words, "--since", str(since)]


def _environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a worker, with the number of threads, which OpenMP reads only when
    it is loaded.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS") if threads else ()
    return {**os.environ, **dict.fromkeys(names, str(threads)), END_WITH_STDIN: "1"}


def _threads(asked: int | None, workers: int) -> int | None:
    """Return the number of threads of each worker on this machine; None means torch's default."""
    if asked or workers == 1:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return max(1, cores // workers)


def _devices() -> list[str]:
    """Return the CUDA devices as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return visible[:count] if visible else [str(index) for index in range(count)]


def _check_reachable(address: str | None) -> None:
    """Raise OSError if the cluster's address does not accept a connection; Ray's own client would
    wait for minutes.
    """
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _imported(package: str) -> ModuleType:
    """Return a launcher's package; raise UsageError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UsageError(
            f"launcher={package} requires the package {package}; install it with pip install"
            f" 'ulskip[{package}]'"
        ) from None


def _refused(name: str, keys: str, error: Exception) -> UsageError:
    return UsageError(f"launcher={name} failed ({one_line(str(error))}); correct {keys}")
