"""Time decoding on random prompts, several engines in the same rounds, and compare the bytes that
a step reads with the rate at which this machine reads memory.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import psutil
import torch

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.config_schema import AUTO, Config
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.schedule import step_counts
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.loop import now
from ulskip_cli.engines.torch.packed_linear import PANELS, choose_linear_backend
from ulskip_cli.experiments.describe import measure_throughput
from ulskip_cli.experiments.paired_timing import Pair, TimedPairs, measure_rounds, time_pairs
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.record import Benchmark, FullSide, Limits, Row
from ulskip_cli.experiments.runner import PreparedRun, Session, prepare_run, store_record
from ulskip_cli.experiments.workload import decode_context, timed_prompts
from ulskip_cli.inference.loading import LoadedModel

READ_BYTES = 2**29  # larger than any cache
MEMORY_SHARE = 0.25  # at most this share of free memory is read
STREAMS = 1, 2, 4, 8  # places that a thread reads in turn; which number is fastest differs


def bandwidth_meter(device: torch.device) -> Callable[[], float]:
    """Return a function that reads a buffer in memory once in several ways, and returns the bytes/s
    of the fastest.
    """
    size = READ_BYTES
    if device.type == "cpu":
        size = min(size, int(MEMORY_SHARE * psutil.virtual_memory().available))
    flat = torch.ones(max(1, size // 32) * 8, device=device)
    reads: list[Callable[[], object]] = [
        *(partial(torch.sum, flat.view(streams, -1), dim=1) for streams in STREAMS),
        partial(torch.amax, flat.view(STREAMS[-1], -1), dim=1),
        partial(torch.dot, *flat.view(2, -1)),
    ]

    def seconds(read: Callable[[], object]) -> float:
        began = now(device)
        read()
        return now(device) - began

    @torch.inference_mode()
    def measure() -> float:
        return flat.nbytes / min(map(seconds, reads))

    return measure


def run_in_rounds(
    points: Sequence[ResolvedPoint], wanted: Collection[str], session: Session
) -> dict[str, Exception]:
    """Time points in rounds, whose reference is the full model of the first point, and
    store the records of the `wanted` identifiers; return the errors of points that failed.

    If the rounds fail, each wanted point is timed alone.
    """
    ready, failed = list[_Timed](), dict[str, Exception]()
    for point in points:
        try:
            ready.append(_warm_up(point, session))
        except Exception as error:
            failed[point.run_id] = error
    try:
        measured = _in_rounds(ready, session) if ready else []
    except Exception as error:
        if len(points) == 1:
            return {points[0].run_id: error}
        for point in points:
            if point.run_id in wanted:
                failed |= run_in_rounds([point], wanted, session)
        return failed
    session.progress.phase("write", 0)
    for timed in measured:
        if timed.run.point.run_id in wanted:
            store_record(timed.run, timed.pair.strategy, timed.pairs, _describe(timed))
    return {run_id: error for run_id, error in failed.items() if run_id in wanted}


def _in_rounds(ready: "Sequence[_Timed]", session: Session) -> "list[_Timed]":
    first = ready[0].run
    rounds = first.timed.speed.replace(warmup=0, new_tokens=first.plan.timed_tokens)
    report = session.progress.phase(f"{len(ready)} engines in rounds", rounds.pairs * len(ready))
    read_rate = bandwidth_meter(first.loaded.model.device)
    measured = measure_rounds([timed.pair for timed in ready], rounds, report, read_rate)
    return [
        replace(
            timed,
            pairs=replace(
                pairs,
                batch_size=timed.pairs.batch_size,
                compile_seconds=pairs.compile_seconds + timed.pairs.compile_seconds,
            ),
        )
        for timed, pairs in zip(ready, measured, strict=True)
    ]


@dataclass(frozen=True)
class _Timed:
    """A prepared point, its decoders, and what was measured."""

    run: PreparedRun
    pair: Pair
    pairs: TimedPairs


def _warm_up(point: ResolvedPoint, session: Session) -> _Timed:
    """Prepare a point and run both sides, with compiled layers if decoding.compile=auto can use
    them and the model supports them.
    """
    loaded = session.load(point.config.model, point.config.seed)
    compiled = with_compilation(point.config, loaded)
    try:
        return _run_once(point, session, compiled)
    except RunError:
        if compiled is point.config:
            raise
    return _run_once(point, session, point.config)


def _run_once(point: ResolvedPoint, session: Session, config: Config) -> _Timed:
    run = prepare_run(point, session, config)
    torch.manual_seed(config.seed)
    full, decoder = session.decoders(run)
    speed = config.speed.replace(new_tokens=run.plan.timed_tokens)
    once = config.replace(speed=speed.replace(pairs=0, warmup=max(1, speed.warmup)))
    pairs = time_pairs(full, decoder, run.workload, once, session.progress)
    batches = timed_prompts(run.workload, pairs.batch_size, speed.pairs, decoder.model, config)
    context = decode_context(config, run.workload)
    return _Timed(run, Pair(full, decoder, batches, context), pairs)


def _describe(timed: _Timed) -> Benchmark:
    """Return the `Benchmark` section of a record, which other runs lack."""
    pairs, run = timed.pairs, timed.run
    depth = run.plan.num_layers
    full = FullSide(
        **dict(measure_throughput(pairs.full, "timed pairs")),
        **_describe_side(timed, pairs.full, [(1, tuple(range(depth)))], 1.0),
        **{key: getattr(pairs.full[0], key) for key in ("engine", "linear_backend")},
    )
    full_steps = pairs.full[0].steps
    steps = step_counts(run.plan.stages, full_steps)
    return Benchmark(
        timed_prompt_tokens=run.timed.speed.prompt_tokens,
        timed_new_tokens=run.plan.timed_tokens,
        compiled=pairs.strategy[0].compiled,
        machine_limits=Limits(bytes_per_second=median(pairs.read_rates)),
        reference_engine=pairs.reference[0].engine if pairs.reference else None,
        full=full,
        **_describe_side(timed, pairs.strategy, steps, run.plan.cached_share(full_steps)),
    )


def with_compilation(config: Config, loaded: LoadedModel) -> Config:
    """Return the configuration with compiled layers if decoding.compile=auto can use them, which
    requires the compiler of the CPU kernels.

    A benchmark measures the speed of long runs, which gain more than compilation costs; `ulskip
    run` does not compile on a CPU.
    """
    engine, _ = config.engine.engine_for(config.needs(), loaded.model)
    has_kernels = choose_linear_backend(loaded.model).name == PANELS
    if config.decoding.compile == AUTO and Need.COMPILATION in engine.supports and has_kernels:
        return config.replace(decoding=config.decoding.replace(compile="on"))
    return config


def _describe_side(
    timed: _Timed,
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
    pairs, weights = timed.pairs, timed.run.plan.sizes.weights
    side = dict[str, float | None]()
    if pairs.reference:
        side |= pairs.over_reference(outputs).row("over_reference")
    if weights is None or outputs[0].drafts is not None:
        return side
    weight_bytes = (weights.head + sum(weights.layers)) / weights.staged_speedup(stages)
    # keys and values after half of the new tokens
    output, batch_size = outputs[0], len(outputs[0].token_ids)
    positions = output.prompt_tokens + batch_size * len(output.token_ids[0]) / 2
    kv_bytes = output.kept_kv_bytes / output.prompt_tokens * positions
    read = round(weight_bytes + kv_bytes * cached_share)
    rates = zip(outputs, pairs.read_rates, strict=True)
    share = median(read / output.step_seconds / rate for output, rate in rates)
    return side | {"step_bytes": read, "bandwidth_share": share if share <= 1 else None}
