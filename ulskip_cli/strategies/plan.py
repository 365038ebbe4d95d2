"""What a run would do: the kept layers and what they promise, decided with integers. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ulskip_cli.core.config import instantiate
from ulskip_cli.core.config_schema import Config, TrainingConfig
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.strategies import EarlyExitStrategy, NeedsCalibration, PositionalStrategy, Strategy, exit_plan, schedule
from ulskip_cli.strategies.cost import num_kept_for_cost
from ulskip_cli.strategies.exit_rule import ExitRule
from ulskip_cli.strategies.memory import MemoryPlan, cached_layers, memory_plan
from ulskip_cli.strategies.schedule import Stage

TYPICAL_LENGTH = 32  # tokens of a response, where none was seen yet


@dataclass(frozen=True)
class Plan:
    """One schedule on one model.

    Attributes:
        strategy: its name.
        num_layers: N, the decoder layers.
        kept_layers: the layers that a decode step runs, ascending; the first steps, where there are later stages.
        prompt_layers: `all` or `kept`.
        target_speedup: what was asked for; None where the strategy ignores the ratio.
        layer_ratio: N over the kept layers.
        predicted_speedup: by bytes of weights read; None where they are unknown.
        kv_bytes_per_token: keys and values a token of all layers; None where unknown.
        kept_kv_bytes_per_token: the same of the kept layers, which is what remains after the prompt.
        warnings: lines for a person.
        memory: the largest batch within a budget; None where none was asked about.
        later_stages: of the steps from which on fewer layers run.
        options: the strategy's own, those that a calibration found among them.
        target_kept: R, the layers that run on average where the depth depends on the position.
        timed_tokens: what a sequence gets in timed pairs, so that as many layers run on average as were asked for.
        exits: where a step may end before it has run all of `kept_layers`; None: nowhere.
    """

    strategy: str
    num_layers: int
    kept_layers: tuple[int, ...]
    prompt_layers: str
    target_speedup: float | None
    layer_ratio: float
    predicted_speedup: float | None
    kv_bytes_per_token: int | None
    kept_kv_bytes_per_token: int | None
    warnings: tuple[str, ...]
    memory: MemoryPlan | None = None
    later_stages: tuple[Stage, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    target_kept: int = 0
    timed_tokens: int = 32
    exits: ExitRule | None = None

    def __post_init__(self) -> None:
        """Kept sets may only shrink: a layer that came back would find holes in its keys and values."""
        for before, after in pairwise(self.stages):
            if not set(after.kept_layers) < set(before.kept_layers) or after.first_step <= before.first_step:
                raise ValueError(f"expected fewer layers at a later step than {before}, got {after}")

    @classmethod
    def of_layers(cls, num_layers: int, kept: Sequence[int], prompt_layers: str = "all") -> "Plan":
        """A schedule that somebody wrote down, on a model of which only the depth is known.

        Raises:
            UsageError: it is none for this depth.
        """
        layers = schedule.checked(num_layers, kept)
        ratio = num_layers / len(layers)
        return cls("custom", num_layers, layers, prompt_layers, None, ratio, None, None, None, ())

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them, the first included."""
        return (Stage(0, self.kept_layers), *self.later_stages)

    def step_counts(self, steps: int) -> list[tuple[int, tuple[int, ...]]]:
        """How many of a sequence's first `steps` decode steps run which layers."""
        return schedule.step_counts(self.stages, steps)

    def mean_kept(self, steps: int) -> float:
        """Layers that run in a decode step, on average over so many steps; with exits what is aimed at."""
        if self.exits:
            return float(self.exits.target_depth)
        return schedule.mean_kept(self.stages, [steps + 1])

    @property
    def num_kept(self) -> int:
        """R."""
        return len(self.kept_layers)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is skipped."""
        return len(self.kept_layers) == self.num_layers and not self.later_stages and self.exits is None


def target_speedup(config: Config) -> float | None:
    """The speedup that a configuration asks for: 1 of `full`, None of a strategy that ignores the ratio."""
    if instantiate(config.strategy, "strategy").follows_ratio:
        return config.ratio
    return 1.0 if config.strategy["name"] == "full" else None


def make_plan(config: Config, facts: ModelMetadata, depth: float | None = None) -> Plan:
    """The plan of a configuration on a model of these facts.

    Args:
        config: strategy, ratio and what the ratio means.
        facts: of the model.
        depth: the mean number of layers over a timed sequence's decode steps that a timing found, for ratio_basis=latency;
            between two counts the deeper set serves the first steps and the shallower the rest.

    Raises:
        UsageError: the ratio is out of reach, or the strategy cannot serve this model.
    """
    strategy: Strategy = instantiate(config.strategy, "strategy")
    num_layers, warnings = facts.num_layers, []
    basis = config.ratio_basis if strategy.follows_ratio else "layers"
    if basis == "latency" and _depth_is_its_own(strategy):
        raise NotApplicable(
            f"ratio_basis=latency does not go with strategy={config.strategy['name']}, which decides its depth itself; "
            "use ratio_basis=layers or cost"
        )
    heads = exit_plan.heads_per_step(strategy, config, num_layers)
    if basis == "latency" and depth is None:
        warnings.append("ratio_basis=latency needs a timing, which a run makes; shown: cost")
        basis = "cost"
    if basis == "latency" and depth is not None:
        count = math.ceil(depth - 1e-9)
    elif basis == "cost" and facts.weights:
        # Of some a count's own layers are not known, or have not the bytes of the average.
        kept_of = schedule.even if _depth_is_its_own(strategy) else strategy.kept_layers
        count = num_kept_for_cost(facts.weights, config.ratio, lambda r: kept_of(num_layers, r), heads)
    else:
        count = strategy.num_kept(num_layers, config.ratio)
        if basis == "cost":
            warnings.append(
                "ratio_basis=cost needs the weights' sizes, which are unknown until the model is loaded; shown: layers"
            )
    kept, steps = strategy.kept_layers(num_layers, count), config.speed.new_tokens - 1
    later: tuple[Stage, ...] = ()
    timed_tokens = config.speed.new_tokens
    if isinstance(strategy, PositionalStrategy):
        (_, *behind) = stages = strategy.stages(num_layers, count, [timed_tokens])
        later, timed_tokens = tuple(behind), _tokens_for(stages, count, timed_tokens)
    exits = exit_plan.make_exit_rule(strategy, config, num_layers, count)
    if isinstance(strategy, NeedsCalibration) and not strategy.is_calibrated:
        warnings.append(
            f"{config.strategy['name']} is not calibrated, which a run does on texts; in place: {strategy.stand_in}"
        )
    if basis == "latency" and depth is not None and count > schedule.MIN_KEPT:
        kept, later = _mixed(strategy, num_layers, round((depth - count + 1) * steps), count, steps)
    spread = config.strategy["name"] in ("unified", "custom")  # the others skip one block on purpose
    if spread and schedule.is_unbalanced(num_layers, kept):
        gap = schedule.longest_gap(kept)
        warnings.append(f"unbalanced: {gap} neighbouring layers are skipped in one block; spacing=even spreads them")
    keeps_all = len(kept) == num_layers
    if keeps_all and config.decoding.draft_tokens:
        raise NotApplicable(
            "decoding.draft_tokens: every layer is kept, which leaves nothing to draft with; skip some, or set 0"
        )
    if later and config.decoding.draft_tokens:
        raise NotApplicable(
            f"decoding.draft_tokens drafts with one set of layers, and strategy={config.strategy['name']} changes it from step "
            "to step; choose another strategy, or set it to 0"
        )
    per_layer = facts.kv_bytes_per_layer
    memory = None if config.memory_budget is None else memory_plan(config, facts, len(kept))
    plan = Plan(
        strategy=config.strategy["name"],
        num_layers=num_layers,
        kept_layers=kept,
        prompt_layers="all" if keeps_all else config.prompt_layers,
        target_speedup=target_speedup(config),
        layer_ratio=num_layers / (count if exits else len(kept)),
        predicted_speedup=facts.weights.predicted_speedup(kept[:count] if exits else kept, heads(count))
        if facts.weights
        else None,
        kv_bytes_per_token=per_layer * num_layers if per_layer else None,
        kept_kv_bytes_per_token=per_layer * cached_layers(config, num_layers, len(kept)) if per_layer else None,
        warnings=tuple(warnings),
        memory=memory,
        later_stages=later,
        options={key: value for key, value in config.strategy.items() if key not in ("_target_", "name", "description")},
        target_kept=count,
        timed_tokens=timed_tokens,
        exits=exits,
    )
    if not later:
        return plan
    predicted = facts.weights.staged_speedup(plan.step_counts(timed_tokens - 1)) if facts.weights else None
    return replace(plan, layer_ratio=num_layers / plan.mean_kept(timed_tokens - 1), predicted_speedup=predicted)


def _depth_is_its_own(strategy: Strategy) -> bool:
    """Whether two counts of a strategy are no two points of one line."""
    return isinstance(strategy, PositionalStrategy) or (
        isinstance(strategy, NeedsCalibration) and "num_kept" in strategy.calibrated_for
    )


def _tokens_for(stages: Sequence[Stage], count: int, tokens: int) -> int:
    """The length of an output in whose steps `count` layers run on average, the nearest to `tokens` where several do."""
    longest = max(tokens, 4 * stages[-1].first_step + 2)
    return min(range(2, longest + 1), key=lambda n: (abs(schedule.mean_kept(stages, [n]) - count), abs(n - tokens)))


def _mixed(
    strategy: Strategy, num_layers: int, deep_steps: int, count: int, steps: int
) -> tuple[tuple[int, ...], tuple[Stage, ...]]:
    """`count` layers in the first steps and one fewer in the rest."""
    deep, shallow = (strategy.kept_layers(num_layers, count - fewer) for fewer in (0, 1))
    if deep_steps <= 0:
        return shallow, ()
    if deep_steps >= steps:
        return deep, ()
    nested = set(shallow) < set(deep)
    return deep, (Stage(deep_steps, shallow if nested else schedule.without_one(deep)),)


def is_trained_for(trained_for: Mapping[str, Any] | None, plan: Plan) -> bool | None:
    """Whether weights were trained with just these layers; None where their training is not known."""
    if trained_for is None:
        return None
    exits = trained_for.get("exits") or []
    if plan.exits:
        return set(plan.exits.checks) <= set(exits)
    trained = list((trained_for["kept_layers"] or {}).values()) + [list(range(depth)) for depth in exits]
    trained += [one["kept_layers"] for later in (trained_for.get("later_stages") or {}).values() for one in later]
    return all(list(stage.kept_layers) in trained for stage in plan.stages)


def schedules(config: TrainingConfig, num_layers: int, lengths: Sequence[int] | None = None) -> dict[float, tuple[Stage, ...]]:
    """What runs in training for every ratio; 1 is the full depth whatever the strategy.

    Args:
        config: of a training.
        num_layers: N.
        lengths: tokens of the responses, over which a depth that falls with the position has its average; None: unknown yet.

    Raises:
        UsageError: a ratio is out of the strategy's reach, or the strategy would have to see the trained model first.
    """
    strategy: Strategy = instantiate(config.strategy, "strategy")
    everything = (Stage(0, tuple(range(num_layers))),)
    if isinstance(strategy, EarlyExitStrategy):
        exit_plan.check_training(config, num_layers)
        return dict.fromkeys(config.train.ratios, everything)
    if isinstance(strategy, NeedsCalibration) and not strategy.is_calibrated and not isinstance(strategy, PositionalStrategy):
        name = config.strategy["name"]
        raise UsageError(
            f"strategy={name} is measured on a trained model; give what a run found, calibration.options in its row"
        )

    def stages(ratio: float) -> tuple[Stage, ...]:
        if ratio == 1:
            return everything
        count = strategy.num_kept(num_layers, ratio)
        if isinstance(strategy, PositionalStrategy):
            return strategy.stages(num_layers, count, lengths or [TYPICAL_LENGTH])
        return (Stage(0, strategy.kept_layers(num_layers, count)),)

    return {ratio: stages(ratio) for ratio in config.train.ratios}
