"""Launchers start a sweep's workers on this machine, on Slurm or on Ray. Each is a thin adapter; start with `local.py`."""

from typing import Protocol

from ulskip_cli.core.config_schema import LauncherConfig
from ulskip_cli.experiments.sweep.launchers.serve import WorkerSpec

SHARED = ("submitit", "ray")  # their workers may be on other machines, whose rows count too


class WorkerPool(Protocol):
    """The workers of one launcher, numbered from 0."""

    size: int

    def start(self, number: int) -> None:
        """Start a worker, or restart one that died."""

    def is_alive(self, number: int) -> bool:
        """True while the worker runs or is queued."""

    def exit_message(self, number: int) -> str | None:
        """Return the message of a worker that ended: empty on success, None if the worker died."""

    def end(self) -> None:
        """Stop all workers."""


def make_worker_pool(launcher: LauncherConfig, orders: WorkerSpec) -> WorkerPool:
    """Return a launcher's workers without starting them; raise UsageError if the launcher's package is not installed."""
    if launcher.name == "local":
        from ulskip_cli.experiments.sweep.launchers.local import Local

        return Local(launcher, orders)
    if launcher.name == "submitit":
        from ulskip_cli.experiments.sweep.launchers.slurm import Slurm

        return Slurm(launcher, orders)
    from ulskip_cli.experiments.sweep.launchers.ray_cluster import RayCluster

    return RayCluster(launcher, orders)
