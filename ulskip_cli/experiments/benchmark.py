"""Time decoding on random prompts, several engines in the same rounds, and compare the bytes that
a step reads with the read bandwidth.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import psutil
import torch

from ulskip_cli.core.config_schema import AUTO, Config
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.strategy import MLP
from ulskip_cli.core.weight_sizes import WeightSizes, gaps, sort_weight_sizes
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.decoder import DecodeContext
from ulskip_cli.engines.torch import session as torch_session
from ulskip_cli.engines.torch.packed_linear import PANELS, choose_linear_backend
from ulskip_cli.experiments.paired_timing import Pair, TimedPairs, measure_rounds, time_pairs
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.read_bandwidth import ReadBandwidth
from ulskip_cli.experiments.record import Benchmark, FullSide, Limits, Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.run_warnings import run_warnings
from ulskip_cli.experiments.runner import (
    PreparedRun,
    Session,
    make_decoders,
    make_record,
    prepare_run,
)
from ulskip_cli.experiments.throughput import measure_throughput
from ulskip_cli.experiments.workload import timed_prompts
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.strategies.plan import Plan


class Benchmarks:
    """Times the points of `ulskip bench`. Points that differ only in the engine are timed in the
    same rounds, because the speed of a machine changes within minutes.
    """

    def __init__(self, points: Sequence[ResolvedPoint]) -> None:
        self._groups: dict[str, list[ResolvedPoint]] = {}
        self._tried: set[str] = set()
        self._timed: dict[str, _Timed] = {}
        for point in points:
            self._groups.setdefault(_without_engine(point.config), []).append(point)

    def run_point(self, point: ResolvedPoint, session: Session) -> list[Record]:
        """Store and return the record of a point; time the point unless it was timed with an
        earlier one.
        """
        if point.run_id not in self._timed:
            self._time(point, session)
        timed = self._timed.pop(point.run_id)
        config, plan = point.config, timed.run.plan
        session.progress.phase("write", 0)
        record = make_record(timed.run, timed.pair.strategy, None, timed.pairs, None)
        seconds = time.monotonic() - timed.run.started_at
        record = record.join(_describe(timed), wall_seconds=seconds)
        record = record.replace(warnings=run_warnings(config, plan, record))
        ResultsFolder.of(config).save(config, record, None)
        return [record]

    def _time(self, point: ResolvedPoint, session: Session) -> None:
        """Time a point together with the untried points of its group, or with the first one only if
        memory cannot hold all.
        """
        group = self._groups[_without_engine(point.config)]
        if _fit_into_memory(group):
            group = [p for p in group if p is point or p.run_id not in self._tried]
        else:
            group = [group[0], point] if point is not group[0] else [point]
        stored = self._tried - {point.run_id}  # a first engine runs again beside each other one
        self._tried |= {other.run_id for other in group}
        ready = []
        for other in group:
            try:
                ready.append(_warm_up(other, session))
            except Exception:  # is raised again when its turn comes
                if other is point:
                    raise
        speed = ready[0].run.timed.speed
        device = ready[0].run.loaded.model.device
        rounds = speed.replace(warmup=0, new_tokens=ready[0].run.plan.timed_tokens)
        report = session.progress.phase(f"{len(ready)} engines in rounds", speed.pairs)
        measured = measure_rounds(
            [timed.pair for timed in ready], rounds, report, ReadBandwidth(device).measure
        )
        for timed, pairs in zip(ready, measured, strict=True):
            pairs = replace(
                pairs,
                batch_size=timed.pairs.batch_size,
                compile_seconds=pairs.compile_seconds + timed.pairs.compile_seconds,
            )
            if timed.run.point.run_id not in stored:
                self._timed[timed.run.point.run_id] = replace(timed, pairs=pairs)


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
    compiled = with_compiled_layers(point.config, loaded)
    try:
        return _run_once(point, session, compiled)
    except RunError:
        if compiled is point.config:
            raise
    return _run_once(point, session, point.config)


def _run_once(point: ResolvedPoint, session: Session, config: Config) -> _Timed:
    run = prepare_run(point, session, config)
    torch.manual_seed(config.seed)
    full, decoder = make_decoders(run, session)
    speed = config.speed.replace(new_tokens=run.plan.timed_tokens)
    once = config.replace(speed=speed.replace(pairs=0, warmup=max(1, speed.warmup)))
    pairs = time_pairs(full, decoder, run.workload, once, session.progress)
    batches = timed_prompts(run.workload, pairs.batch_size, speed.pairs, decoder.model, config)
    context = DecodeContext(config.decoding, run.workload.pad_token_id, config.seed)
    return _Timed(run, Pair(full, decoder, batches, context), pairs)


def _without_engine(config: Config) -> str:
    return str({key: value for key, value in config if key != "engine"})


def _fit_into_memory(points: Sequence[ResolvedPoint]) -> bool:
    """Return True if half of the free memory holds the weights, and a copy for each engine of
    another library.
    """
    weights = points[0].metadata.weights
    copies = 1 + sum(point.config.engine.is_runtime for point in points)
    free = psutil.virtual_memory().available
    return weights is None or copies * (weights.head + sum(weights.layers)) < free / 2


def _describe(timed: _Timed) -> Benchmark:
    """Return the section of a record that only benchmarks have."""
    pairs, run = timed.pairs, timed.run
    full_side, own_side = _describe_sides(timed)
    compiled = pairs.strategy[0].compiled
    return Benchmark(
        timed_prompt_tokens=run.timed.speed.prompt_tokens,
        timed_new_tokens=run.plan.timed_tokens,
        compiled=compiled,
        compiled_layers=compiled and run.timed.decoding.compile == "layers",
        machine_limits=Limits(bytes_per_second=median(pairs.read_rates)),
        reference_engine=pairs.reference[0].engine if pairs.reference else None,
        full=FullSide(
            **dict(measure_throughput(pairs.full, "timed pairs")),
            **full_side,
            **{key: getattr(pairs.full[0], key) for key in ("engine", "linear_backend")},
        ),
        **own_side,
    )


def with_compiled_layers(config: Config, loaded: LoadedModel) -> Config:
    """Return the configuration with compiled layers if decoding.compile=auto can use them, which
    requires the compiler of the CPU kernels.

    A benchmark measures the speed of long runs, which gain more than compilation costs; `ulskip
    run` does not compile on a CPU.
    """
    torch_engine = (
        config.engine.name in ("auto", "torch")
        and torch_session.unsupported_reason(loaded.model, config.decoding) is None
    )
    can_compile = choose_linear_backend(loaded.model).name == PANELS
    if (
        config.decoding.compile != AUTO
        or config.decoding.draft_tokens
        or not torch_engine
        or not can_compile
    ):
        return config
    return config.replace(decoding=config.decoding.replace(compile="layers"))


def _describe_sides(timed: _Timed) -> list[dict[str, Any]]:
    """Return the tokens/s over those of the reference, the bytes that a step reads and their share
    of the bandwidth, for the full model and then the schedule.

    Unknown values are None. A share above 1 is None too, because it shows that the limit was not
    measured.
    """
    pairs, plan, loaded, config = timed.pairs, timed.run.plan, timed.run.loaded, timed.run.timed
    weights = loaded.metadata.weights
    if config.engine.weights:
        weights = config.engine.sizes(_parameters(loaded), 8)  # from one byte per weight
    drafted, patches = (
        pairs.strategy[0].drafts is not None,
        (
            0.0,
            _patches(plan, pairs.full[0].steps),
        ),
    )
    if patches[1] and weights is not None:
        weights = replace(
            weights, patch=(plan.patch_bytes or 0) // len(gaps(plan.kept_layers, plan.num_layers))
        )
    weights = weights and weights.of_unit(plan.unit)
    runs = dict.fromkeys(range(plan.num_layers), 1.0), _runs(plan, pairs.full[0].steps)
    sides = []
    for i, outputs in enumerate((pairs.full, pairs.strategy)):
        depth = sum(runs[i].values())
        cached = 1.0 if plan.unit == MLP else depth / (plan.num_kept if i else plan.num_layers)
        read, share = None, None
        if weights is not None and not (drafted and i):
            kv_bytes = len(outputs[0].token_ids) * _kv_bytes(outputs[0]) * cached
            read = round(_weight_bytes(weights, runs[i], patches[i]) + kv_bytes)
            rates = zip(outputs, pairs.read_rates, strict=True)
            share = median(read / output.step_seconds / rate for output, rate in rates)
        side = {"step_bytes": read, "bandwidth_share": share if share and share <= 1 else None}
        if pairs.reference:
            ratio = pairs.over_reference(outputs)
            side |= {
                "over_reference": ratio.median,
                "over_reference_low": ratio.low,
                "over_reference_high": ratio.high,
            }
        sides.append(side)
    return sides


def _weight_bytes(weights: WeightSizes, runs: Mapping[int, float], patches: float) -> float:
    """Return the bytes of the output head, of `patches` patches, and of the layers by the share of
    steps that run them.
    """
    layers = sum(share * weights.layers[layer] for layer, share in runs.items())
    return weights.head + patches * weights.patch + layers


def _runs(plan: Plan, steps: int) -> dict[int, float]:
    """Return the share of decode steps that run each layer."""
    by_stage = plan.step_counts(steps)
    return {
        layer: sum(count for count, kept in by_stage if layer in kept) / steps
        for layer in plan.kept_layers
    }


def _patches(plan: Plan, steps: int) -> float:
    """Return the mean number of gaps in a decode step."""
    return (
        sum(count * len(gaps(kept, plan.num_layers)) for count, kept in plan.step_counts(steps))
        / steps
    )


def _kv_bytes(output: BatchOutput) -> float:
    """Return the KV cache bytes of one sequence after half of its new tokens, in the layers of the
    first stage.
    """
    batch_size = len(output.token_ids)
    middle = output.prompt_tokens / batch_size + len(output.token_ids[0]) / 2
    return output.kept_kv_bytes / output.prompt_tokens * middle


def _parameters(loaded: LoadedModel) -> WeightSizes | None:
    """Return the number of weights by layer, or None if quantization packs the weights into
    integers.
    """
    model = loaded.model
    if not all(p.is_floating_point() for p in model.parameters()):
        return None
    counts = {name: (list(p.shape), p.numel()) for name, p in model.named_parameters()}
    return sort_weight_sizes(
        counts, loaded.metadata.num_layers, model.config.get_text_config(decoder=True).vocab_size
    )
