"""Who starts a sweep's workers: a thin adapter for each engine. What a worker does is the same under all of them."""

from typing import Protocol

from ulskip_cli.core.config_schema import LauncherConfig
from ulskip_cli.experiments.sweep.launchers.serve import WorkerSpec

SHARED = ("submitit", "ray")  # their workers may be on other machines, whose times are as good as those of this one


class WorkerPool(Protocol):
    """Workers under one engine, numbered from 0."""

    size: int

    def start(self, number: int) -> None:
        """Start a worker, again where it has died."""

    def is_alive(self, number: int) -> bool:
        """Whether it works, or waits for its turn to."""

    def exit_message(self, number: int) -> str | None:
        """What a worker that ended of itself had to say, "" where all is well; None: it died."""

    def end(self) -> None:
        """Stop them all."""


def make_worker_pool(launcher: LauncherConfig, orders: WorkerSpec) -> WorkerPool:
    """The workers that a configuration names, none of them started.

    Raises:
        UsageError: the engine's package is not installed.
    """
    if launcher.name == "local":
        from ulskip_cli.experiments.sweep.launchers.local import Local

        return Local(launcher, orders)
    if launcher.name == "submitit":
        from ulskip_cli.experiments.sweep.launchers.slurm import Slurm

        return Slurm(launcher, orders)
    from ulskip_cli.experiments.sweep.launchers.ray_cluster import RayCluster

    return RayCluster(launcher, orders)
