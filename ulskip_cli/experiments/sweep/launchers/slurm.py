"""Workers as Slurm jobs through submitit, or as processes of this machine if Slurm is missing."""

import tempfile
from typing import Any

from ulskip_cli.core.config_schema import LauncherConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.sweep.jobs import results_folder
from ulskip_cli.experiments.sweep.launchers.serve import WorkerSpec, missing_package, serve, threads_per_worker

MINUTES = 24 * 60


class Slurm:
    """Workers as jobs of one submitit executor."""

    def __init__(self, launcher: LauncherConfig, orders: WorkerSpec) -> None:
        """Configure the executor; raise UsageError if submitit is not installed or rejects an option."""
        try:
            import submitit
        except ImportError:
            raise missing_package("submitit", "submitit") from None
        self.size = launcher.workers or 1
        cluster = None if launcher.executor == "auto" else launcher.executor
        logs = results_folder(orders.jobs).path / "logs" / "submitit"
        options = {"timeout_min": MINUTES, "name": "ulskip", **(launcher.options or {})}
        logs.mkdir(parents=True, exist_ok=True)
        # submitit loads pickles from its folder, so the folder must be new and writable by this user only.
        folder = tempfile.mkdtemp(dir=logs.resolve())
        try:
            self._executor: Any = submitit.AutoExecutor(folder=folder, cluster=cluster)
            here = self._executor.cluster != "slurm"  # Slurm assigns separate cores to each job
            threads = threads_per_worker(launcher.threads, self.size) if here else launcher.threads
            if launcher.threads and not here:
                options.setdefault("cpus_per_task", launcher.threads)
            self._executor.update_parameters(**options)
        except Exception as error:
            raise UsageError(
                f"submitit refused launcher.executor or launcher.options ({' '.join(str(error).split())[:200]}); correct them"
            ) from None
        self._orders = orders.with_threads(threads or (options.get("cpus_per_task") if not here else None))
        self._jobs: dict[int, Any] = {}

    def start(self, number: int) -> None:
        """Submit a job."""
        self._jobs[number] = self._executor.submit(serve, self._orders)

    def is_alive(self, number: int) -> bool:
        """True while the job is queued or runs."""
        return number in self._jobs and not self._jobs[number].done()

    def exit_message(self, number: int) -> str | None:
        """Return the message that the job returned; None if it failed."""
        try:
            return str(self._jobs[number].result())
        except Exception:  # an error of submitit or of the job
            return None

    def end(self) -> None:
        """Cancel unfinished jobs."""
        for number, job in self._jobs.items():
            if self.is_alive(number):
                job.cancel()
