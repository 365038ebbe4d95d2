"""Time the full model and a schedule in pairs on random prompts, and measure the read bandwidth (`ulskip bench`)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch

from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import AUTO, COMPILED, Config
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.strategy import MLP
from ulskip_cli.core.weight_sizes import WeightSizes, gaps, sort_weight_sizes
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.torch import session as torch_session
from ulskip_cli.engines.torch.packed_linear import PANELS, choose_linear_backend
from ulskip_cli.experiments.descriptions import ScheduleProvenance, describe_provenance, describe_schedule
from ulskip_cli.experiments.latency_target import LatencyTargetFit
from ulskip_cli.experiments.paired_timing import TimedPairs, time_pairs
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.read_bandwidth import read_bytes_per_second
from ulskip_cli.experiments.record import RunRecord
from ulskip_cli.experiments.record_sections import BenchmarkDetails
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.run_warnings import adjustments
from ulskip_cli.experiments.runner import Session
from ulskip_cli.experiments.throughput import measure_throughput
from ulskip_cli.experiments.workload import RANDOM_PROMPTS
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.inference.skip_adapter import SkipAdapter, load_adapter, timing_adapter
from ulskip_cli.strategies.plan import Plan, make_plan


@dataclass
class BenchmarkRunner:
    """Runs the points of one benchmark, which share weights, compiled steps of the full model, and read bandwidths."""

    session: Session
    _full: tuple[str, Decoder] | None = None
    _bandwidths: dict[str, float] = field(default_factory=dict)

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
        bandwidth = self._read_bandwidth(loaded)
        latency = self.session.solve_depth(timed, loaded, RANDOM_PROMPTS)
        plan = make_plan(config, loaded.metadata, latency.depth if latency else None)
        adapter, found = timed_correction(config, loaded, plan, latency)
        strategy = Decoder(loaded.model, plan, adapter=adapter, engine=config.engine)
        full = strategy if plan.keeps_all else self._full_decoder(config, loaded)
        fixed = timed.replace(speed=config.speed.replace(new_tokens=plan.timed_tokens))
        pairs = time_pairs(full, strategy, RANDOM_PROMPTS, fixed, progress)
        full_side, own_side = _describe_sides(pairs, plan, loaded, bandwidth, config)
        details = BenchmarkDetails(
            timed_prompt_tokens=config.speed.prompt_tokens,
            timed_new_tokens=plan.timed_tokens,
            compiled=pairs.strategy[0].compiled,
            compiled_layers=pairs.strategy[0].compiled and timed.decoding.compile == "layers",
            machine_limits={"bytes_per_second": bandwidth},
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
            schedule=describe_schedule(plan, found, timed=pairs.strategy),
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

    def _read_bandwidth(self, loaded: LoadedModel) -> float:
        device = loaded.model.device
        key = f"{device} {torch.get_num_threads()}"
        if key not in self._bandwidths:
            self.session.progress.phase("read bandwidth", 1)
            self._bandwidths[key] = read_bytes_per_second(device)
        return self._bandwidths[key]


def _with_compiled_layers(config: Config, loaded: LoadedModel) -> Config:
    """Return the configuration with compiled layers if decoding.compile=auto can use them: they need the CPU kernels' compiler.

    A benchmark is about long runs, in which the seconds of compiling pay; `ulskip run` does not compile on a CPU.
    """
    torch_engine = (
        config.engine.name in ("auto", "torch") and torch_session.unsupported_reason(loaded.model, config.decoding) is None
    )
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
    pairs: TimedPairs, plan: Plan, loaded: LoadedModel, bandwidth: float, config: Config
) -> list[dict[str, Any]]:
    """Return the bytes that a step reads and its share of the bandwidth, for the full model and then the schedule.

    Unknown values are None.
    """
    weights = loaded.metadata.weights
    if config.engine.weights:
        weights = config.engine.sizes(_parameters(loaded), 8)  # from one byte per weight
    drafted, patches = pairs.strategy[0].drafts is not None, (0.0, _patches(plan, pairs.full[0].steps))
    if patches[1] and weights is not None:
        weights = replace(weights, patch=(plan.patch_bytes or 0) // len(gaps(plan.kept_layers, plan.num_layers)))
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
            share = read / median(output.step_seconds for output in outputs) / bandwidth
        sides.append({"step_bytes": read, "bandwidth_share": share})
    return sides


def _weight_bytes(weights: WeightSizes, runs: Mapping[int, float], patches: float) -> float:
    """Return the bytes of the output head, of `patches` patches, and of the layers by the share of steps that run them."""
    layers = sum(share * weights.layers[layer] for layer, share in runs.items())
    return weights.head + patches * weights.patch + layers


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
