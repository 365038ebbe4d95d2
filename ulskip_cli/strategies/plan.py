"""Plans: the layers to run and their predicted speedup, from a configuration and a model's metadata, without torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ulskip_cli.core.adapter_record import adapter_records
from ulskip_cli.core.config import instantiate, shown_options
from ulskip_cli.core.config_schema import LAYER, MLP, Config, ModelConfig
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.core.weight_sizes import WeightSizes, gaps
from ulskip_cli.strategies import NeedsCalibration, PositionalStrategy, Strategy, schedule
from ulskip_cli.strategies.cost import draft_vocab_size, num_kept_for_cost, weights_of_step
from ulskip_cli.strategies.early_exit_plan import heads_per_step, make_exit_rule
from ulskip_cli.strategies.exit_rule import ExitRule
from ulskip_cli.strategies.memory import MemoryPlan, cached_layers, memory_plan
from ulskip_cli.strategies.patching import NO_PATCH, patch_kind, patch_parameters, unit_of
from ulskip_cli.strategies.schedule import Stage
from ulskip_cli.strategies.stage_checks import check_stages


@dataclass(frozen=True)
class Plan:
    """Schedule of one configuration on one model, with its predictions."""

    strategy: str
    num_layers: int
    kept_layers: tuple[int, ...]  # ascending, those that keep the unit; with later stages, those of the first steps
    prompt_layers: str  # all or kept
    target_speedup: float | None  # None if the strategy ignores the ratio
    layer_ratio: float  # N over the mean number of layers per step
    predicted_speedup: float | None  # by bytes of weights; None if they are unknown
    kv_bytes_per_token: int | None  # keys and values of one token in all layers; None if unknown
    kept_kv_bytes_per_token: int | None  # the part of them that remains after the prompt
    warnings: tuple[str, ...]
    memory: MemoryPlan | None = None  # None without a budget
    later_stages: tuple[Stage, ...] = ()  # each with fewer layers
    options: dict[str, Any] = field(default_factory=dict)  # of the strategy, calibrated ones included
    target_kept: int = 0  # R, the requested mean number of layers per step
    timed_tokens: int = 32  # per sequence in timed pairs; positional strategies need a length with a mean depth of R
    exits: ExitRule | None = None  # None without early exit
    patch_bytes: int | None = 0  # bytes of patches that a first step reads; None if unknown
    unit: str = LAYER  # what is skipped: layer, attention or mlp
    draft_cost: float | None = None  # bytes of a drafting step over those of a full step; None without drafts or if unknown

    def __post_init__(self) -> None:
        """Check that later stages only drop layers; an added layer would lack the keys and values of earlier steps."""
        for before, after in pairwise(self.stages):
            if not set(after.kept_layers) < set(before.kept_layers) or after.first_step <= before.first_step:
                raise ValueError(f"expected fewer layers at a later step than {before}, got {after}")

    @classmethod
    def from_layers(cls, num_layers: int, kept: Sequence[int], prompt_layers: str = "all", unit: str = LAYER) -> "Plan":
        """Make a plan from a list of layers and the depth of a model; raise UsageError for an invalid list."""
        if unit != LAYER and prompt_layers != "all":
            raise UsageError(f"unit={unit} is not supported with prompt_layers={prompt_layers}; use prompt_layers=all")
        layers = schedule.checked(num_layers, kept)
        ratio = num_layers / len(layers)
        return cls("custom", num_layers, layers, prompt_layers, None, ratio, None, None, None, (), unit=unit)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages of decoding: the first stage and `later_stages`."""
        return (Stage(0, self.kept_layers), *self.later_stages)

    def step_counts(self, steps: int) -> list[tuple[int, tuple[int, ...]]]:
        """Return, for each stage, how many of the first `steps` decode steps use the stage, and the layers of the stage."""
        return schedule.step_counts(self.stages, steps)

    def mean_kept(self, steps: int) -> float:
        """Return the mean number of layers over the first `steps` decode steps; early exit returns its target depth."""
        if self.exits:
            return float(self.exits.target_depth)
        return schedule.mean_kept(self.stages, [steps + 1])

    @property
    def num_kept(self) -> int:
        """Number of layers of the first stage."""
        return len(self.kept_layers)

    def cached_layers(self, stage: Stage) -> tuple[int, ...]:
        """Return the layers whose keys and values a stage reads."""
        return tuple(range(self.num_layers)) if self.unit == MLP else stage.kept_layers

    @property
    def keeps_all(self) -> bool:
        """True if no step skips a layer."""
        return self.num_kept == self.num_layers and not self.later_stages and self.exits is None


def target_speedup(config: Config) -> float | None:
    """Return the speedup that a configuration requests: 1 for `full`, None for a strategy that ignores the ratio."""
    if instantiate(config.strategy, "strategy").follows_ratio:
        return config.ratio
    return 1.0 if config.strategy["name"] == "full" else None


def make_plan(config: Config, metadata: ModelMetadata, depth: float | None = None) -> Plan:
    """Make the plan of a configuration for a model; raise UsageError if its settings do not fit the model or each other.

    For ratio_basis=latency, `depth` is the mean number of layers that reached the target in timings. If `depth` is not an
    integer, the first steps run one layer more than the others.
    """
    strategy: Strategy = instantiate(config.strategy, "strategy")
    patch = _patch_bytes(metadata, config)
    metadata = replace(metadata, weights=weights_of_step(metadata.weights, config, patch))
    num_layers, per_layer = metadata.num_layers, metadata.kv_bytes_per_layer
    heads = heads_per_step(strategy, config, num_layers)
    basis, fallbacks = _usable_basis(strategy, config, metadata, depth)
    depth = depth if basis == "latency" else None
    count = _choose_count(strategy, config, metadata, basis, depth)
    stages = _choose_stages(strategy, config, num_layers, count, depth)
    exits = make_exit_rule(strategy, config, num_layers, count)
    check_stages(config, num_layers, stages)

    kept = stages[0].kept_layers
    timed_tokens = _choose_timed_tokens(strategy, stages, count, config.speed.new_tokens)
    return Plan(
        strategy=config.strategy["name"],
        num_layers=num_layers,
        kept_layers=kept,
        prompt_layers="all" if len(kept) == num_layers else config.prompt_layers,
        target_speedup=target_speedup(config),
        layer_ratio=num_layers / (count if exits else schedule.mean_kept(stages, [timed_tokens])),
        predicted_speedup=_predict_speedup(metadata.weights, stages, count, heads(count), timed_tokens),
        kv_bytes_per_token=per_layer * num_layers if per_layer else None,
        kept_kv_bytes_per_token=per_layer * cached_layers(config, num_layers, len(kept)) if per_layer else None,
        warnings=(*fallbacks, *_schedule_warnings(strategy, config, num_layers, kept)),
        memory=None if config.memory_budget is None else memory_plan(config, metadata, len(kept)),
        later_stages=stages[1:],
        options=shown_options(config.strategy),
        target_kept=count,
        timed_tokens=timed_tokens,
        exits=exits,
        patch_bytes=None if patch is None else patch * len(gaps(kept, num_layers)),
        unit=unit_of(config.strategy),
        draft_cost=_draft_cost(config, metadata, kept),
    )


def adapter_of(model: ModelConfig, plan: Plan) -> tuple[str, dict[str, Any]] | None:
    """Return the folder and record of the skip adapter for a plan's layers, or None if there is none.

    Raises UsageError if the adapters are of another model, or none has the plan's layers.
    """
    records = adapter_records(model)
    wanted = {stage.kept_layers for stage in plan.stages if len(stage.kept_layers) < plan.num_layers}
    if not records or not wanted:
        return None
    known: list[tuple[int, ...]] = []
    for name, record in zip(model.skip_adapter, records, strict=True):
        kept_sets = {tuple(layers) for layers in record["kept_sets"]}
        known += sorted(kept_sets)
        if wanted <= kept_sets:
            return name, record
    raise UsageError(
        f"expected kept layers that model.skip_adapter corrects, {' or '.join(map(_listed, known))}, got "
        f"{' and '.join(map(_listed, sorted(wanted)))}; use strategy=custom strategy.layers={_listed(known[0])}, or another "
        "adapter"
    )


def _patch_bytes(metadata: ModelMetadata, config: Config) -> int | None:
    """Return the bytes of the patch that a decode step reads at every gap; None if they are unknown."""
    kind, rank = patch_kind(config)
    if kind == NO_PATCH:
        return 0
    if not metadata.hidden_size:
        return None
    return patch_parameters(kind, metadata.hidden_size, rank) * (metadata.weight_bytes or 2)


def _usable_basis(
    strategy: Strategy, config: Config, metadata: ModelMetadata, depth: float | None
) -> tuple[str, tuple[str, ...]]:
    """Return the ratio basis that the available data allow, and a warning for each fallback."""
    basis = config.ratio_basis if strategy.follows_ratio else "layers"
    warnings = []
    if basis == "latency" and _chooses_own_depth(strategy):
        raise NotApplicable(
            f"ratio_basis=latency is not supported with strategy={config.strategy['name']}, which adjusts its own depth; "
            "use ratio_basis=layers or ratio_basis=cost"
        )
    if basis == "latency" and depth is None:
        warnings.append("ratio_basis=latency requires a timing, which only a run makes; this plan uses ratio_basis=cost")
        basis = "cost"
    if basis == "cost" and metadata.weights is None:
        warnings.append(
            "ratio_basis=cost requires the sizes of the weights, which the model's files do not state; "
            "this plan uses ratio_basis=layers"
        )
        basis = "layers"
    return basis, tuple(warnings)


def _choose_count(strategy: Strategy, config: Config, metadata: ModelMetadata, basis: str, depth: float | None) -> int:
    num_layers = metadata.num_layers
    if depth is not None:
        return math.ceil(depth - 1e-9)
    if basis == "cost" and metadata.weights is not None:
        # Even spacing replaces layers that are unknown yet, or whose mean bytes differ from the average step.
        layers_of = schedule.even if _chooses_own_depth(strategy) else strategy.kept_layers
        heads = heads_per_step(strategy, config, num_layers)
        return num_kept_for_cost(metadata.weights, config.ratio, lambda count: layers_of(num_layers, count), heads)
    return strategy.num_kept(num_layers, config.ratio)


def _choose_stages(strategy: Strategy, config: Config, num_layers: int, count: int, depth: float | None) -> tuple[Stage, ...]:
    if isinstance(strategy, PositionalStrategy):
        return strategy.stages(num_layers, count, [config.speed.new_tokens])
    if depth is not None and count > schedule.MIN_KEPT:
        return _stages_for_depth(strategy, num_layers, count, depth, config.speed.new_tokens - 1)
    return (Stage(0, strategy.kept_layers(num_layers, count)),)


def _stages_for_depth(strategy: Strategy, num_layers: int, count: int, depth: float, steps: int) -> tuple[Stage, ...]:
    deep, shallow = (strategy.kept_layers(num_layers, count - fewer) for fewer in (0, 1))
    deep_steps = round((depth - count + 1) * steps)
    if deep_steps <= 0:
        return (Stage(0, shallow),)
    if deep_steps >= steps:
        return (Stage(0, deep),)
    nested = set(shallow) < set(deep)
    return (Stage(0, deep), Stage(deep_steps, shallow if nested else schedule.without_one(deep)))


def _choose_timed_tokens(strategy: Strategy, stages: Sequence[Stage], count: int, tokens: int) -> int:
    """Return the length of timed outputs: `tokens`; a positional strategy needs the nearest length with a mean depth of R."""
    if not isinstance(strategy, PositionalStrategy):
        return tokens
    longest = max(tokens, 4 * stages[-1].first_step + 2)
    return min(range(2, longest + 1), key=lambda n: (abs(schedule.mean_kept(stages, [n]) - count), abs(n - tokens)))


def _schedule_warnings(strategy: Strategy, config: Config, num_layers: int, kept: Sequence[int]) -> list[str]:
    warnings, name = [], config.strategy["name"]
    if isinstance(strategy, NeedsCalibration) and not strategy.is_calibrated:
        warnings.append(f"strategy={name} is not calibrated yet; a run calibrates it, and this plan uses {strategy.stand_in}")
    if name in ("unified", "custom") and schedule.is_unbalanced(num_layers, kept):  # the others skip one block on purpose
        gap = schedule.longest_gap(kept)
        warnings.append(
            f"unbalanced schedule: it skips {gap} neighbouring layers in one block, which may lower the quality; "
            "strategy=unified strategy.spacing=even spreads them"
        )
    return warnings


def _predict_speedup(
    weights: WeightSizes | None, stages: Sequence[Stage], count: int, heads: int, timed_tokens: int
) -> float | None:
    if weights is None:
        return None
    if len(stages) > 1:
        return weights.staged_speedup(schedule.step_counts(stages, timed_tokens - 1))
    return weights.predicted_speedup(stages[0].kept_layers[:count], heads)  # an early exit runs the first R on average


def _draft_cost(config: Config, metadata: ModelMetadata, kept: Sequence[int]) -> float | None:
    vocab_size = metadata.vocab_size
    if not config.decoding.draft_tokens or metadata.weights is None or not vocab_size:
        return None
    return metadata.weights.draft_cost(kept, draft_vocab_size(config.decoding, vocab_size) / vocab_size)


def _chooses_own_depth(strategy: Strategy) -> bool:
    """Return True if a strategy adjusts its own depth to R, so that its latency is not linear in its number of layers."""
    return isinstance(strategy, PositionalStrategy) or (
        isinstance(strategy, NeedsCalibration) and "num_kept" in strategy.calibrated_for
    )


def is_trained_for(trained_for: Mapping[str, Any] | None, plan: Plan) -> bool | None:
    """Return True if weights were trained with the layers of a plan, and None if it is unknown how they were trained."""
    if trained_for is None:
        return None
    if plan.unit != LAYER:
        return False
    exits = trained_for.get("exits") or []
    if plan.exits:
        return set(plan.exits.checks) <= set(exits)
    trained = list((trained_for["kept_layers"] or {}).values()) + [list(range(depth)) for depth in exits]
    trained += [one["kept_layers"] for later in (trained_for.get("later_stages") or {}).values() for one in later]
    return all(list(stage.kept_layers) in trained for stage in plan.stages)


def _listed(layers: Sequence[int]) -> str:
    return f"[{','.join(map(str, layers))}]"
