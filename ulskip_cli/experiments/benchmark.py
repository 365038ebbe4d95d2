"""Time the full model and a schedule in pairs on random prompts, and measure the machine's limits (`ulskip bench`)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch

from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import AUTO, COMPILED, Config
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.strategy import LAYER, MLP
from ulskip_cli.core.weight_sizes import WeightSizes, gaps, sort_weight_sizes
from ulskip_cli.experiments import machine_limits
from ulskip_cli.experiments.descriptions import ScheduleProvenance, describe_provenance, describe_schedule
from ulskip_cli.experiments.latency_target import LatencyTargetFit
from ulskip_cli.experiments.machine_limits import MachineLimits
from ulskip_cli.experiments.paired_timing import TimedPairs, time_pairs
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.record import RunRecord
from ulskip_cli.experiments.record_sections import BenchmarkDetails
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.run_warnings import adjustments
from ulskip_cli.experiments.runner import Session
from ulskip_cli.experiments.step_time import StepTimeBreakdown, StepWork, layer_seconds
from ulskip_cli.experiments.throughput import measure_throughput
from ulskip_cli.experiments.workload import RANDOM_PROMPTS
from ulskip_cli.inference.decoder import Decoder
from ulskip_cli.inference.engines import fast
from ulskip_cli.inference.engines.base import BatchOutput
from ulskip_cli.inference.head_timing import head_seconds
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.inference.packed_linear import PANELS, choose_linear_backend
from ulskip_cli.inference.skip_adapter import SkipAdapter, load_adapter, timing_adapter
from ulskip_cli.strategies.plan import Plan, make_plan


@dataclass
class BenchmarkRunner:
    """Runs the points of one benchmark, which share weights, compiled steps of the full model, and machine limits."""

    session: Session
    _full: tuple[str, Decoder] | None = None
    _limits: dict[str, MachineLimits] = field(default_factory=dict)

    def run_point(self, point: ResolvedPoint) -> list[RunRecord]:
        """Time one point and store its record; raise RunError if a single sequence does not fit into memory."""
        config = point.config
        compiled = _with_compiled_layers(config, self._load(config))
        try:
            return self._time_point(point, compiled)
        except RunError:
            if compiled is config:
                raise
            return self._time_point(point, config)  # torch.compile does not support every model

    def _time_point(self, point: ResolvedPoint, timed: Config) -> list[RunRecord]:
        """Time one point as `timed` says, which can differ from its configuration in decoding.compile, and store its record."""
        config, progress = point.config, self.session.progress
        loaded = self._load(config)
        limits = self._measure_limits(loaded)
        latency = self.session.solve_depth(timed, loaded, RANDOM_PROMPTS)
        plan = make_plan(config, loaded.metadata, latency.depth if latency else None)
        adapter, found = timed_correction(config, loaded, plan, latency)
        strategy = Decoder(loaded.model, plan, adapter=adapter, engine=config.engine)
        full = strategy if plan.keeps_all else self._full_decoder(config, loaded)
        fixed = timed.replace(speed=config.speed.replace(new_tokens=plan.timed_tokens))
        pairs = time_pairs(full, strategy, RANDOM_PROMPTS, fixed, progress)
        progress.phase(f"{plan.strategy}: step time", 0)
        sides = (pairs.full[0], full), (pairs.strategy[0], strategy)
        heads = [head_seconds(decoder, output.linear_backend, pairs.batch_size) for output, decoder in sides]
        full_side, own_side = _describe_sides(pairs, plan, loaded, limits, heads, config)
        details = BenchmarkDetails(
            timed_prompt_tokens=config.speed.prompt_tokens,
            timed_new_tokens=plan.timed_tokens,
            compiled=pairs.strategy[0].compiled,
            compiled_layers=pairs.strategy[0].compiled and timed.decoding.compile == "layers",
            machine_limits=asdict(limits),
            full={
                **asdict(measure_throughput(pairs.full, "timed pairs")),
                **full_side,
                "engine": pairs.full[0].engine,
                "linear_backend": pairs.full[0].linear_backend,
            },
            **own_side,
        )
        throughput = measure_throughput(pairs.strategy, "timed pairs")
        record = RunRecord(
            identity=replace(point.identity, task=None, pair=None, prompt_layers=plan.prompt_layers),
            schedule=describe_schedule(plan, found),
            throughput=replace(throughput, compile_seconds=pairs.compile_seconds),
            timing=pairs.timing(),
            benchmark=details,
            provenance=describe_provenance(config, plan, loaded, strategy, 0),
        )
        warnings = [*plan.warnings, *adjustments(config, record)]
        if config.decoding.compile in COMPILED and not details.compiled:
            engine, how = pairs.strategy[0].engine, config.decoding.compile
            warnings.append(
                f"decoding.compile={how} had no effect: the {engine} engine does not compile this model's steps, so they were "
                "timed uncompiled; use engine=torch if it supports the model"
            )
        record = replace(record, warnings=tuple(warnings))
        ResultsFolder.of(config).save(config, record)
        return [record]

    def _load(self, config: Config) -> LoadedModel:
        """Return the loaded model; the decoder of a previous model is released first."""
        if self._full and self._full[0] != _key(config):
            self._full = None
        return self.session.load(config.model, config.seed)

    def _full_decoder(self, config: Config, loaded: LoadedModel) -> Decoder:
        """Return the decoder of the full model. All points share this decoder, so that its steps are compiled once."""
        if self._full is None:
            plan = make_plan(baseline_config(config), loaded.metadata)
            self._full = _key(config), Decoder(loaded.model, plan, engine=config.engine)
        return self._full[1]

    def _measure_limits(self, loaded: LoadedModel) -> MachineLimits:
        device, dtype = loaded.model.device, loaded.model.dtype
        key = f"{device} {dtype} {torch.get_num_threads()}"
        if key not in self._limits:
            self.session.progress.phase("machine limits", 1)
            self._limits[key] = machine_limits.measure(device, dtype)
        return self._limits[key]


def _with_compiled_layers(config: Config, loaded: LoadedModel) -> Config:
    """Return the configuration with compiled layers if decoding.compile=auto can use them: they need the CPU kernels' compiler.

    A benchmark is about long runs, in which the seconds of compiling pay; `ulskip run` does not compile on a CPU.
    """
    torch_engine = config.engine.name in ("auto", "torch") and fast.unsupported_reason(loaded.model, config.decoding) is None
    can_compile = choose_linear_backend(loaded.model).name == PANELS
    if config.decoding.compile != AUTO or config.decoding.draft_tokens or not torch_engine or not can_compile:
        return config
    return config.replace(decoding=config.decoding.replace(compile="layers"))


def timed_correction(
    config: Config, loaded: LoadedModel, plan: Plan, latency: LatencyTargetFit | None = None
) -> tuple[SkipAdapter | None, ScheduleProvenance]:
    """Return the adapter that a benchmark times, and the provenance of its schedule.

    For correction=patch it contains zeros, because random prompts give no patches, and their values cost no time.
    """
    trained, entry = load_adapter(config, plan)
    if not config.correction.is_fitted or plan.keeps_all:
        return trained, ScheduleProvenance(latency, skip_adapter=entry)
    shape = config.correction.patches(config.model)
    rank = shape.rank if shape.kind == "low_rank" else None
    patch = {"kind": shape.kind, "rank": rank, "values": "zero", "bytes": plan.patch_bytes}
    sets = [stage.kept_layers for stage in plan.stages]
    return timing_adapter(loaded.model, sets, shape), ScheduleProvenance(latency, patch=patch)


def _key(config: Config) -> str:
    return f"{config.model} {config.seed} {config.engine}"


def _describe_sides(
    pairs: TimedPairs, plan: Plan, loaded: LoadedModel, limits: MachineLimits, heads: Sequence[float | None], config: Config
) -> list[dict[str, Any]]:
    """Return step times and shares of the machine limits, for the full model and then the schedule; unknown values are None."""
    weights, parameters = loaded.metadata.weights, _parameters(loaded)
    if config.engine.weights:
        weights = config.engine.sizes(parameters, 8)  # from one byte per weight
    drafted, patches = pairs.strategy[0].drafts is not None, (0.0, _patches(plan, pairs.full[0].steps))
    if patches[1] and weights is not None:
        weights = replace(weights, patch=(plan.patch_bytes or 0) // len(gaps(plan.kept_layers, plan.num_layers)))
        hidden_size = loaded.model.config.get_text_config(decoder=True).hidden_size
        patch = config.correction.patches(config.model).parameters(hidden_size)
        parameters = parameters and replace(parameters, patch=patch)
    weights, parameters = (sizes and sizes.of_unit(plan.unit) for sizes in (weights, parameters))
    runs = dict.fromkeys(range(plan.num_layers), 1.0), _runs(plan, pairs.full[0].steps)
    depths = [sum(shares.values()) for shares in runs]
    seconds = [median(output.step_seconds for output in outputs) for outputs in (pairs.full, pairs.strategy)]
    per_layer = None if drafted or plan.unit != LAYER else layer_seconds(seconds[0], seconds[1], depths[0], depths[1])
    sides = []
    for i, outputs in enumerate((pairs.full, pairs.strategy)):
        cached = 1.0 if plan.unit == MLP else depths[i] / (plan.num_kept if i else plan.num_layers)
        kv_bytes = _kv_bytes(outputs[0]) * cached
        known = (None, None) if drafted and i else (weights, parameters)
        work = StepWork.of(*known, runs[i], kv_bytes, len(outputs[0].token_ids), patches[i])
        breakdown = StepTimeBreakdown(seconds[i], heads[i], None if per_layer is None else per_layer * depths[i])
        sides.append({**_shares(work, seconds[i], limits), "step_time_breakdown": breakdown.as_dict()})
    return sides


def _shares(work: StepWork, seconds: float, limits: MachineLimits) -> dict[str, Any]:
    return {
        "step_bytes": work.bytes,
        "step_flops": work.flops,
        "bandwidth_share": work.bytes and work.bytes / seconds / limits.bytes_per_second,
        "flop_share": work.flops and work.flops / seconds / limits.flops_per_second,
    }


def _runs(plan: Plan, steps: int) -> dict[int, float]:
    """Return the share of decode steps that run each layer."""
    by_stage = plan.step_counts(steps)
    return {layer: sum(count for count, kept in by_stage if layer in kept) / steps for layer in plan.kept_layers}


def _patches(plan: Plan, steps: int) -> float:
    """Return the mean number of gaps in a decode step."""
    return sum(count * len(gaps(kept, plan.num_layers)) for count, kept in plan.step_counts(steps)) / steps


def _kv_bytes(output: BatchOutput) -> float:
    """Return the KV cache bytes of one sequence after half of its new tokens, in the layers of the first stage."""
    batch_size = len(output.token_ids)
    middle = output.prompt_tokens / batch_size + len(output.token_ids[0]) / 2
    return output.kept_kv_bytes / output.prompt_tokens * middle


def _parameters(loaded: LoadedModel) -> WeightSizes | None:
    """Return the number of weights by layer, or None if quantization packs the weights into integers."""
    model = loaded.model
    if not all(p.is_floating_point() for p in model.parameters()):
        return None
    counts = {name: (list(p.shape), p.numel()) for name, p in model.named_parameters()}
    return sort_weight_sizes(counts, loaded.metadata.num_layers, model.config.get_text_config(decoder=True).vocab_size)
