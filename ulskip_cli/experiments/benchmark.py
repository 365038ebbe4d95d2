"""Speed without a task: full and strategy in pairs on random prompts, beside what this machine can do at most."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median

import torch

from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.weight_sizes import WeightSizes, sort_weight_sizes
from ulskip_cli.experiments import machine_limits
from ulskip_cli.experiments.evaluate import adjustments
from ulskip_cli.experiments.machine_limits import MachineLimits
from ulskip_cli.experiments.paired_timing import PairedSpeed
from ulskip_cli.experiments.results import ResultsFolder, Row, point_id
from ulskip_cli.experiments.runner import Session, identity_row, provenance_row
from ulskip_cli.experiments.speed import speed_row, time_pairs
from ulskip_cli.experiments.step_time import StepTimeBreakdown, StepWork, layer_seconds
from ulskip_cli.experiments.throughput import draft_statistics, throughput
from ulskip_cli.experiments.workload import Workload
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.decoder import Decoder
from ulskip_cli.inference.engines.base import BatchOutput
from ulskip_cli.inference.head_timing import head_seconds
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.strategies.plan import Plan, make_plan

RANDOM = Workload(None, (), None, 0, None)  # no prompt is padded: all have one length


@dataclass
class BenchmarkRunner:
    """What the points of one bench share: weights, what the full model compiled, ceilings."""

    session: Session
    _full: tuple[str, Decoder] | None = None
    _ceilings: dict[str, MachineLimits] = field(default_factory=dict)

    def run_point(self, config: Config) -> list[Row]:
        """Time one point and store its row.

        Raises:
            UsageError: the request cannot be served.
            RunError: not even one sequence fits into memory.
        """
        loaded = self._model(config)
        limits = self._measured_ceilings(loaded)
        size = BatchSize(config.batch_size)
        latency = self.session.depth(config, loaded, RANDOM)
        plan = make_plan(config, loaded.metadata, latency.depth if latency else None)
        strategy = Decoder(loaded.model, plan)
        full = strategy if plan.keeps_all else self._full_decoder(config, loaded)
        timed = replace(config, speed=replace(config.speed, new_tokens=plan.timed_tokens))
        pairs = time_pairs(full, strategy, RANDOM, size, timed, self.session.progress)
        engine, reason = strategy.engine(config.decoding)
        self.session.progress.phase(f"{plan.strategy}: account", 0)
        ran = pairs.full[0], pairs.strategy[0]
        heads = [
            head_seconds(decoder, output.linear_backend, size.used)
            for decoder, output in zip((full, strategy), ran, strict=True)
        ]
        sides = _sides(pairs, plan, loaded, limits, heads)
        row = {
            **identity_row(config, plan, RANDOM, point_id(config, []), None),
            "timed_prompt_tokens": config.speed.prompt_tokens,
            "timed_new_tokens": plan.timed_tokens,
            "engine": engine,
            "engine_reason": reason,
            "linear_backend": ran[1].linear_backend,
            "linear_backend_reason": strategy.linear_backend(config.decoding).reason,
            "latency_fit": latency and latency.told(),
            **speed_row(pairs, size),
            **sides[1],
            "full": {**sides[0], "engine": ran[0].engine, "linear_backend": ran[0].linear_backend},
            **draft_statistics(pairs.strategy),
            "compiled": ran[1].compiled,
            "compile_seconds": pairs.compile_seconds,
            "ceilings": asdict(limits),
            **provenance_row(config, plan, loaded, 0),
        }
        row["warnings"] += adjustments(row)
        if config.decoding.compile == "on" and not row["compiled"]:
            row["warnings"].append(f"decoding.compile=on: the {engine} engine does not compile this model's steps")
        ResultsFolder.of(config).save(config, row)
        return [row]

    def _model(self, config: Config) -> LoadedModel:
        """The loaded model; what holds on to another one is let go before."""
        if self._full and self._full[0] != _key(config):
            self._full = None
        return self.session.model(config.model, config.seed)

    def _full_decoder(self, config: Config, loaded: LoadedModel) -> Decoder:
        """The full model's, from point to point the same with what it compiled."""
        if self._full is None:
            self._full = _key(config), Decoder(loaded.model, make_plan(baseline_config(config), loaded.metadata))
        return self._full[1]

    def _measured_ceilings(self, loaded: LoadedModel) -> MachineLimits:
        """Measured once for a device, dtype and number of threads."""
        device, dtype = loaded.model.device, loaded.model.dtype
        key = f"{device} {dtype} {torch.get_num_threads()}"
        if key not in self._ceilings:
            self.session.progress.phase("ceilings", 1)
            self._ceilings[key] = machine_limits.measure(device, dtype)
        return self._ceilings[key]


def _key(config: Config) -> str:
    return f"{config.model} {config.seed}"


def _sides(pairs: PairedSpeed, plan: Plan, loaded: LoadedModel, limits: MachineLimits, heads: Sequence[float]) -> list[Row]:
    """How fast full and strategy were, how much of the machine they used, where their time went.

    Where tokens are drafted, one of them is no step of its own, so that its work and its layers' time are not known.
    """
    parameters, drafted = _parameters(loaded), pairs.strategy[0].drafts is not None
    runs = dict.fromkeys(range(plan.num_layers), 1.0), _runs(plan, pairs.full[0].steps)
    depths = [sum(shares.values()) for shares in runs]
    seconds = [median(output.step_seconds for output in outputs) for outputs in (pairs.full, pairs.strategy)]
    per_layer = None if drafted else layer_seconds(seconds[0], seconds[1], depths[0], depths[1])
    sides = []
    for i, outputs in enumerate((pairs.full, pairs.strategy)):
        kv_bytes = _kv_bytes(outputs[0]) * depths[i] / (plan.num_kept if i else plan.num_layers)
        known = (None, None) if drafted and i else (loaded.metadata.weights, parameters)
        work = StepWork.of(*known, runs[i], kv_bytes, len(outputs[0].token_ids))
        told = StepTimeBreakdown(seconds[i], heads[i], None if per_layer is None else per_layer * depths[i])
        sides.append({**throughput(outputs, "timed pairs"), **_shares(work, seconds[i], limits), "account": told.row()})
    return sides


def _shares(work: StepWork, seconds: float, limits: MachineLimits) -> Row:
    """How much of what the machine can do a step reaches."""
    return {
        "step_bytes": work.bytes,
        "step_flops": work.flops,
        "bandwidth_share": work.bytes and work.bytes / seconds / limits.bytes_per_second,
        "flop_share": work.flops and work.flops / seconds / limits.flops_per_second,
    }


def _runs(plan: Plan, steps: int) -> dict[int, float]:
    """By layer, the share of decode steps that run it."""
    by_stage = plan.step_counts(steps)
    return {layer: sum(count for count, kept in by_stage if layer in kept) / steps for layer in plan.kept_layers}


def _kv_bytes(output: BatchOutput) -> float:
    """Of one sequence in the layers that it began with, halfway through its new tokens."""
    batch_size = len(output.token_ids)
    middle = output.prompt_tokens / batch_size + len(output.token_ids[0]) / 2
    return output.kept_kv_bytes / output.prompt_tokens * middle


def _parameters(loaded: LoadedModel) -> WeightSizes | None:
    """The number of weights by layer, sorted as their bytes are; None where they are packed into whole numbers."""
    model = loaded.model
    if not all(p.is_floating_point() for p in model.parameters()):
        return None
    counts = {name: (list(p.shape), p.numel()) for name, p in model.named_parameters()}
    return sort_weight_sizes(counts, loaded.metadata.num_layers, model.config.get_text_config(decoder=True).vocab_size)
