"""What a worker does, wherever it was started. Nothing here imports torch before its threads are set."""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ulskip_cli.core.errors import StorageError, UsageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.results import Row
from ulskip_cli.experiments.sweep.jobs import Job, folder_of
from ulskip_cli.experiments.sweep.status import SweepStatus
from ulskip_cli.experiments.sweep.worker import FailurePolicy, RunJob, RunningMarker, run_jobs


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is told.

    Attributes:
        jobs: of the sweep, all of them.
        turn: of the sweep.
        since: where it began in the file of rows.
        force: whether finished points are run again.
        anywhere: whether times of any machine count.
        folder: that paths start from; every worker sees it.
        threads: of the worker; None: as many as torch likes.
    """

    jobs: Sequence[Job]
    turn: FailurePolicy
    since: int
    force: bool
    anywhere: bool
    folder: str
    threads: int | None = None

    def with_threads(self, threads: int | None) -> "WorkerSpec":
        """The same with so many threads."""
        return replace(self, threads=threads)


def serve(orders: WorkerSpec) -> str:
    """Work until all jobs are settled.

    Args:
        orders: of the sweep.

    Returns:
        "" where all is well, otherwise why nobody can go on.
    """
    os.environ.update(thread_environment(orders.threads))
    os.chdir(orders.folder)
    import torch

    if orders.threads:
        torch.set_num_threads(orders.threads)
    folder = folder_of(orders.jobs)
    ledger = status_for(orders.jobs, orders.force, orders.anywhere, orders.since)
    mark = RunningMarker(folder)
    try:
        run_jobs(orders.jobs, ledger, make_job_runner(mark), orders.turn, mark)
    except StorageError as error:
        return str(error)
    return ""


def thread_environment(threads: int | None) -> dict[str, str]:
    """Environment variables that keep a worker to its share of the cores; OpenMP reads them once, when it is loaded."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} if threads else {}


def threads_per_worker(asked: int | None, workers: int) -> int | None:
    """Of each of several workers on this machine; None where a worker has the machine to itself."""
    if asked or workers == 1:
        return asked
    return max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, "sched_getaffinity") else 1


def status_for(jobs: Sequence[Job], force: bool, anywhere: bool, since: int | None = None) -> SweepStatus:
    """The ledger of a sweep whose rows are of this machine, or of any."""

    def is_like_here(row: Row) -> bool:
        from ulskip_cli.core import environment

        return anywhere or environment.is_like_here(row)

    return SweepStatus(folder_of(jobs), is_like_here, force, since)


def make_job_runner(progress: ProgressCallback) -> RunJob:
    """What runs one job after another, with weights that stay."""
    from ulskip_cli.experiments import runner
    from ulskip_cli.inference.batching import release

    session, untidy = runner.Session(progress), False

    def run(job: Job, baseline: Row | None) -> Row:
        nonlocal untidy
        if untidy:  # what failed may have filled the memory
            gc.collect()
            release()
        untidy = True
        row = runner.run_point(job.config, session, baseline)[-1]
        untidy = False
        return row

    return run


def missing_package(package: str, extra: str) -> UsageError:
    """That an engine is not installed."""
    return UsageError(f"launcher={extra} needs the package {package}; pip install 'ulskip[{extra}]'")
