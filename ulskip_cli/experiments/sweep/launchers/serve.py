"""The entry point of a worker process, which imports torch only after the number of threads is set."""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ulskip_cli.core.errors import StorageError, UsageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.sweep.jobs import Job, results_folder
from ulskip_cli.experiments.sweep.running_marker import RunningMarker
from ulskip_cli.experiments.sweep.status import SweepStatus
from ulskip_cli.experiments.sweep.worker import FailurePolicy, RunJob, Worker


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that a worker process needs; the specification is pickled."""

    jobs: Sequence[Job]
    policy: FailurePolicy
    since: int  # the number of rows when the sweep began
    force: bool  # run finished points again
    anywhere: bool  # count rows of any machine
    folder: str  # the working directory of all workers
    threads: int | None = None  # None leaves the number to torch

    def with_threads(self, threads: int | None) -> "WorkerSpec":
        """Return a copy with another number of threads."""
        return replace(self, threads=threads)


def serve(spec: WorkerSpec) -> str:
    """Run jobs until all are settled; return an empty string, or the reason why no worker can continue."""
    os.environ.update(thread_environment(spec.threads))
    os.chdir(spec.folder)
    import torch

    if spec.threads:
        torch.set_num_threads(spec.threads)
    status = status_for(spec.jobs, spec.force, spec.anywhere, spec.since)
    marker = RunningMarker(results_folder(spec.jobs))
    try:
        Worker(spec.jobs, status, make_job_runner(marker), spec.policy, marker).run()
    except StorageError as error:
        return str(error)
    return ""


def thread_environment(threads: int | None) -> dict[str, str]:
    """Return environment variables that limit a worker's threads; OpenMP reads the variables only when it is loaded."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} if threads else {}


def threads_per_worker(asked: int | None, workers: int) -> int | None:
    """Return the number of threads of each worker on this machine; None means torch's default."""
    if asked or workers == 1:
        return asked
    return max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, "sched_getaffinity") else 1


def status_for(jobs: Sequence[Job], force: bool, anywhere: bool, since: int | None = None) -> SweepStatus:
    """Return the status of a sweep; rows of other machines count only if `anywhere` is True.

    In a sweep of one process, rows with another number of threads do not count either.
    """
    also = ("threads",) if jobs[0].config.launcher.name == "inline" else ()

    def is_like_here(record: Record) -> bool:
        from ulskip_cli.core import environment

        where = record.environment
        return anywhere or (where is not None and environment.is_like_here(where.model_dump(), record.device or "cpu", also))

    return SweepStatus(results_folder(jobs), is_like_here, force, since)


def make_job_runner(progress: ProgressCallback) -> RunJob:
    """Return a function that runs one job per call and keeps the weights loaded between calls."""
    from ulskip_cli.experiments import runner
    from ulskip_cli.inference.batching import release

    session, failed_before = runner.Session(progress), False

    def run(job: Job, baseline: Record | None) -> Record:
        nonlocal failed_before
        if failed_before:  # the failed job may still hold memory
            gc.collect()
            release()
        failed_before = True
        assert job.point is not None
        record = runner.run_point(job.point, session, baseline)[-1]
        failed_before = False
        return record

    return run


def missing_package(package: str, extra: str) -> UsageError:
    """Return the error for a launcher whose package is not installed."""
    return UsageError(f"launcher={extra} requires the package {package}; install it with pip install 'ulskip[{extra}]'")
