"""Launchers run the command `ulskip sweep ... --since ROWS` in N processes, on this machine, on
Slurm or on Ray.

Each process is a worker. Workers claim points by lock files, so any number of them share a folder.
Slurm and Ray restart a lost worker; `local` restarts its own.
"""

import contextlib
import importlib
import logging
import math
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

from ulskip_cli.core import environment
from ulskip_cli.core.config_schema import LauncherConfig
from ulskip_cli.core.errors import UsageError, one_line

# A worker ends when its standard input is closed, which happens when its parent dies.
END_WITH_STDIN = "ULSKIP_END_WITH_STDIN"
CONNECT_SECONDS = 10.0
END_SECONDS = 5.0
MINUTES = 24 * 60  # of a Slurm job


Alive = Callable[[], int]  # returns how many workers are queued or run


@contextlib.contextmanager
def local(
    launcher: LauncherConfig, command: Sequence[str], logs: Path, workers: int
) -> Iterator[Alive]:
    """Run workers as processes of this machine, one for each device; each writes its output to a
    file in `logs`. Those that still run at the end of the block are terminated.
    """
    devices = _devices()
    size = min(workers, launcher.workers or max(1, len(devices)))
    variables = _environment(_threads(launcher.threads, size))
    chosen = [{"CUDA_VISIBLE_DEVICES": device} for device in devices] or [{}]
    retries = [launcher.max_retries] * size
    logs.mkdir(parents=True, exist_ok=True)

    def start(number: int) -> "subprocess.Popen[bytes]":
        with (logs / f"worker-{number}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=variables | chosen[number % len(chosen)],
            )

    processes = list(map(start, range(size)))

    def alive() -> int:
        """Restart workers that a signal ended, and return how many workers run."""
        for number, process in enumerate(processes):
            if (process.poll() or 0) < 0 and retries[number]:
                retries[number] -= 1
                processes[number] = start(number)
        return sum(process.poll() is None for process in processes)

    try:
        yield alive
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def on_submitit(
    launcher: LauncherConfig, command: Sequence[str], logs: Path, workers: int
) -> Iterator[Alive]:
    """Run workers as Slurm jobs, or as processes of this machine if Slurm is missing; unfinished
    jobs are cancelled at the end of the block. Raise UsageError if submitit is not installed or
    rejects an option.
    """
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
    job = run_worker, command, threads, str(Path.cwd())
    jobs = [executor.submit(*job) for _ in range(size)]
    try:
        yield lambda: sum(not job.done() for job in jobs)
    finally:
        for unfinished in jobs:
            unfinished.cancel()


@contextlib.contextmanager
def on_ray(
    launcher: LauncherConfig, command: Sequence[str], logs: Path, workers: int
) -> Iterator[Alive]:
    """Run workers as tasks on a Ray cluster; without an address, Ray starts a cluster on this
    machine. Unfinished tasks are cancelled at the end of the block. Raise UsageError if ray or the
    cluster is missing.
    """
    ray = _imported("ray")
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
    # Ray sets OMP_NUM_THREADS to `num_cpus`, and a node can have fewer CPUs than this machine.
    cpus = [int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"]]
    threads = launcher.threads or max(1, max(cpus) // math.ceil(size / len(cpus)))
    options = {
        "num_cpus": threads,
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
    tasks = [task.remote(command, threads, str(Path.cwd())) for _ in range(size)]
    try:
        yield lambda: len(ray.wait(tasks, num_returns=len(tasks), timeout=0)[1])
    finally:
        for unfinished in tasks:
            ray.cancel(unfinished, force=True)
        ray.shutdown()


POOLS: dict[str, Callable[..., AbstractContextManager[Alive]]] = {
    "local": local,
    "submitit": on_submitit,
    "ray": on_ray,
}


def run_worker(command: Sequence[str], threads: int | None, folder: str) -> None:
    """Run a worker's command until it ends; raise CalledProcessError if a signal ends it.

    The worker ends if this process dies, because this process holds the other end of its standard
    input.
    """
    variables = _environment(threads)
    with subprocess.Popen(command, cwd=folder, env=variables, stdin=subprocess.PIPE) as process:
        code = process.wait()
    if code < 0:
        raise subprocess.CalledProcessError(code, list(command))


def _requeued(*arguments: object) -> object:
    """Return a job that Slurm preempts or that runs out of time as a new job, which continues with
    the unfinished points.
    """
    return _imported("submitit").helpers.DelayedSubmission(run_worker, *arguments)


run_worker.checkpoint = _requeued  # type: ignore[attr-defined]  # submitit looks for it there


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
    return max(1, len(environment.cpus()) // workers)


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
    if host and port.isdigit() and "//" not in host:  # other forms, as `auto`, are left to Ray
        place = host.strip("[]"), int(port)  # brackets of IPv6
        socket.create_connection(place, CONNECT_SECONDS).close()


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
