"""The time that the points of a sweep will take, estimated from rows that are already stored."""

from collections.abc import Sequence
from statistics import median

from ulskip_cli.experiments.record import Point, Record
from ulskip_cli.experiments.sweep.jobs import Job, Sweep


def expected_seconds(jobs: Sequence[Job], records: Sequence[Record]) -> float | None:
    """Return the seconds that jobs will take: each as long as the median of the finished runs of
    its model, task, data, limit and batch size on this processor. Return None if a job has no such
    run.
    """
    seconds = dict[tuple[object, ...], list[float]]()
    for record in records:
        if record.is_done and record.wall_seconds and record.is_from_here(quick=True):
            seconds.setdefault(_kind(record), []).append(record.wall_seconds)
    total = 0.0
    for job in jobs:
        similar = seconds.get(_kind(job.identity))
        if similar is None:
            return None
        total += median(similar)
    return total


def to_run(planned: Sweep) -> str:
    """Say how many points of a sweep will run, and how long they will take; empty if none will."""
    left = [job for job in planned.jobs if not job.refused and planned.record(job) is None]
    if not left:
        return ""
    seconds = expected_seconds(left, planned.folder.records())
    time = "the time that they take is estimated after the first one"
    if seconds is not None:
        time = f"{duration(seconds)} in one process, by the rows of {planned.folder.path}/"
    able = sum(job.refused is None for job in planned.jobs)
    return f"{len(left)} of {able} points to run; {time}"


def duration(seconds: float) -> str:
    """Name a duration.

    >>> duration(20), duration(60), duration(700), duration(6000)
    ('less than a minute', 'about 1 minute', 'about 12 minutes', 'about 1.7 hours')
    """
    if seconds < 45:
        return "less than a minute"
    minutes = round(seconds / 60)
    if minutes >= 90:
        return f"about {seconds / 3600:.1f} hours"
    return f"about {minutes} minute{'s' * (minutes != 1)}"


def _kind(point: Point) -> tuple[object, ...]:
    """Return what decides most of a point's time, besides its layers."""
    task = point.config.task.name
    return point.model, task, point.dataset, point.config.limit, point.batch_size
