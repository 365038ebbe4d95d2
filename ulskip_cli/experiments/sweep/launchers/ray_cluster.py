"""Workers as tasks on a Ray cluster; without an address, Ray starts a cluster on this machine."""

import logging
import os
import socket
from typing import Any

from ulskip_cli.core.config_schema import LauncherConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.sweep.launchers.serve import (
    WorkerSpec,
    missing_package,
    serve,
    thread_environment,
    threads_per_worker,
)

CONNECT_SECONDS = 10.0


class RayCluster:
    """Ray tasks, one per worker."""

    def __init__(self, launcher: LauncherConfig, orders: WorkerSpec) -> None:
        """Connect to a cluster, or start one on this machine; raise UsageError if ray or the cluster is missing."""
        try:
            import ray
        except ImportError:
            raise missing_package("ray", "ray") from None
        self._ray: Any = ray
        address = launcher.address or os.environ.get("RAY_ADDRESS")
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
        if address is not None:
            quiet.pop("include_dashboard")
        else:
            os.environ.setdefault(
                "RAY_worker_niceness", "0"
            )  # with Ray's default niceness other processes would slow the timings
        try:
            _check_reachable(address)
            ray.init(address=address, ignore_reinit_error=True, **quiet)
        except Exception as error:
            raise UsageError(
                f"launcher=ray: expected a Ray cluster at {address}, got none ({' '.join(str(error).split())[:160]}); "
                "check launcher.address, or set it to null to use this machine"
            ) from None
        devices = int(ray.cluster_resources().get("GPU", 0))
        self.size = launcher.workers or max(1, devices)
        threads = threads_per_worker(launcher.threads, self.size)
        self._orders = orders.with_threads(threads)
        options: dict[str, Any] = {"max_retries": 0, "num_cpus": threads or 1, "num_gpus": 1 if devices else 0}
        options["runtime_env"] = {"env_vars": thread_environment(threads)} if threads else {}
        try:
            self._task: Any = ray.remote(serve).options(**{**options, **(launcher.options or {})})
        except (ValueError, TypeError) as error:
            ray.shutdown()
            raise UsageError(f"Ray refused launcher.options ({' '.join(str(error).split())[:160]}); correct it") from None
        self._tasks: dict[int, Any] = {}

    def start(self, number: int) -> None:
        """Submit a task."""
        self._tasks[number] = self._task.remote(self._orders)

    def is_alive(self, number: int) -> bool:
        """True while the task is queued or runs."""
        return number in self._tasks and not self._ray.wait([self._tasks[number]], timeout=0)[0]

    def exit_message(self, number: int) -> str | None:
        """Return the message that the task returned; None if it failed."""
        try:
            return str(self._ray.get(self._tasks[number]))
        except Exception:  # an error of Ray or of the task
            return None

    def end(self) -> None:
        """Cancel unfinished tasks and disconnect."""
        for number, task in self._tasks.items():
            if self.is_alive(number):
                self._ray.cancel(task, force=True)
        self._ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise OSError if the cluster's address does not accept a connection; Ray's own client would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
