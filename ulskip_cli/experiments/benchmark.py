"""Time decoding on random prompts, several engines in the same rounds, and compare the bytes that
a step reads with the rate at which this machine reads memory.
"""

from collections.abc import Collection, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import torch

from ulskip_cli.core.errors import StorageError
from ulskip_cli.core.schedule import step_counts
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.experiments.describe import measure_throughput
from ulskip_cli.experiments.paired_timing import (
    Opened,
    TimedPairs,
    measure_units,
    open_pair,
)
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.record import Benchmark, FullSide, Limits, Row
from ulskip_cli.experiments.runner import PreparedRun, Session, prepare_run, store_record
from ulskip_cli.inference.batching import BatchSize, run_with_oom_retry
from ulskip_cli.strategies.plan import Plan


def run_in_rounds(
    points: Sequence[ResolvedPoint], wanted: Collection[str], session: Session
) -> dict[str, Exception]:
    """Time points in rounds, whose reference is the full model of the first point, and
    store the records of the `wanted` identifiers; return the errors of points that failed.

    If the rounds fail, each wanted point is timed alone.
    """
    ready, failed = list[_Ready](), dict[str, Exception]()
    for point in points:
        try:
            ready.append(_warm_up(point, session))
        except Exception as error:
            failed[point.run_id] = error
    opened, label = [point.opened for point in ready], f"{len(ready)} engines in rounds"
    try:
        measured = []
        if ready:
            speed = ready[0].run.timed.speed
            measured = measure_units(opened, speed, label, session.progress)
    except Exception as error:
        if len(points) == 1:
            return {points[0].run_id: error}
        failed_alone = dict[str, Exception]()
        for point in points:
            if point.run_id in wanted:
                failed_alone |= run_in_rounds([point], wanted, session)
        return failed_alone
    session.progress.phase("write")
    for (run, timed), pairs in zip(ready, measured, strict=True):
        try:
            if run.point.run_id in wanted:
                store_record(run, timed.pair.strategy, pairs, _describe(run, pairs))
        except StorageError:
            raise
        except Exception as error:
            failed[run.point.run_id] = error
    return {run_id: error for run_id, error in failed.items() if run_id in wanted}


class _Ready(NamedTuple):
    """A prepared point, and its decoders after their first run."""

    run: PreparedRun
    opened: Opened


def _warm_up(point: ResolvedPoint, session: Session) -> _Ready:
    """Prepare a point and run both sides."""
    config, run = point.config, prepare_run(point, session)
    torch.manual_seed(config.seed)
    full, decoder = session.decoders(run)
    opened = run_with_oom_retry(
        BatchSize(config.batch_size),
        partial(open_pair, full, decoder, run.workload, run.timed),
    )
    return _Ready(run, opened)


def _describe(run: PreparedRun, pairs: TimedPairs) -> Benchmark:
    """Return the `Benchmark` section of a record, which other runs lack."""
    depth = run.plan.num_layers
    full = FullSide(
        **dict(measure_throughput(pairs.full, "timed pairs")),
        **_describe_side(run.plan, pairs, pairs.full, [(1, tuple(range(depth)))], 1.0),
        **{key: getattr(pairs.full[0], key) for key in ("engine", "linear_backend")},
    )
    full_steps = pairs.full[0].steps
    steps = step_counts(run.plan.stages, full_steps)
    return Benchmark(
        timed_prompt_tokens=run.timed.speed.prompt_tokens,
        timed_new_tokens=run.timed.speed.new_tokens,
        machine_limits=Limits(bytes_per_second=median(_read_rates(pairs))),
        reference_engine=pairs.reference[0].engine if pairs.reference else None,
        full=full,
        **_describe_side(run.plan, pairs, pairs.strategy, steps, run.plan.cached_share(full_steps)),
    )


def _read_rates(pairs: TimedPairs) -> list[float]:
    """Return the read rate of memory in the unit of each pair."""
    return [unit.bytes_per_second or 0.0 for unit in pairs.units for _ in range(unit.pairs)]


def _describe_side(
    plan: Plan,
    pairs: TimedPairs,
    outputs: Sequence[BatchOutput],
    stages: Sequence[tuple[int, tuple[int, ...]]],
    cached_share: float,
) -> Row:
    """Return the tokens/s of one side over those of the reference, the bytes that a step reads and
    their share of the bandwidth.

    `stages` are numbers of steps with the layers that they run, and `cached_share` is the part of
    the keys and values in `BatchOutput` that a step reads. Unknown values are None. A share above 1
    is None too, because it shows that the limit was not measured.
    """
    weights = plan.sizes.weights
    side = pairs.over_reference(outputs) if pairs.reference else {}
    # A check of drafts reads more than a step. transformers does not count its own.
    if weights is None or (plan.drafts and outputs is pairs.strategy):
        return side
    weight_bytes = (weights.head + sum(weights.layers)) / weights.staged_speedup(stages)
    # keys and values after half of the new tokens
    output, batch_size = outputs[0], len(outputs[0].token_ids)
    positions = output.prompt_tokens + batch_size * len(output.token_ids[0]) / 2
    kv_bytes = output.kept_kv_bytes / output.prompt_tokens * positions
    read = round(weight_bytes + kv_bytes * cached_share)
    rates = zip(outputs, _read_rates(pairs), strict=True)
    share = median(read / output.step_seconds / rate for output, rate in rates)
    return side | {"step_bytes": read, "bandwidth_share": share if share <= 1 else None}
