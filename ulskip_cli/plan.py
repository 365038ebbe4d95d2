"""What a run would do: the kept layers and what they promise, decided with integers. Imports no torch."""

from dataclasses import dataclass

from ulskip_cli import schedule
from ulskip_cli.config import instantiate
from ulskip_cli.models.facts import ModelFacts
from ulskip_cli.schema import Config, TrainingConfig
from ulskip_cli.strategies import Strategy


@dataclass(frozen=True)
class Plan:
    """One schedule on one model.

    Attributes:
        strategy: its name.
        num_layers: N, the decoder layers.
        kept_layers: the layers that a decode step runs, ascending.
        prompt_layers: `all` or `kept`.
        target_speedup: what was asked for; None where the strategy ignores the ratio.
        layer_ratio: N over the kept layers.
        predicted_speedup: by bytes of weights read; None where they are unknown.
        kv_bytes_per_token: keys and values a token of all layers; None where unknown.
        kept_kv_bytes_per_token: the same of the kept layers, which is what remains after the prompt.
        warnings: lines for a person.
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

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is skipped."""
        return len(self.kept_layers) == self.num_layers


def make_plan(config: Config, facts: ModelFacts) -> Plan:
    """The plan of a configuration on a model of these facts.

    Raises:
        UsageError: the ratio is out of reach, or the strategy cannot serve this model.
    """
    strategy: Strategy = instantiate(config.strategy, "strategy")
    num_layers, warnings = facts.num_layers, []
    if config.ratio_basis == "cost" and strategy.follows_ratio and facts.weights:
        count = facts.weights.num_kept(config.ratio, lambda r: strategy.kept_layers(num_layers, r))
    else:
        count = strategy.num_kept(num_layers, config.ratio)
        if config.ratio_basis == "cost" and strategy.follows_ratio:
            warnings.append(
                "ratio_basis=cost needs the weights' sizes, which are unknown until the model is loaded; shown: layers"
            )
    kept = strategy.kept_layers(num_layers, count)
    spread = config.strategy["name"] in ("unified", "custom")  # the others skip one block on purpose
    if spread and schedule.is_unbalanced(num_layers, kept):
        gap = schedule.longest_gap(kept)
        warnings.append(f"unbalanced: {gap} neighbouring layers are skipped in one block; spacing=even spreads them")
    keeps_all = len(kept) == num_layers
    per_layer = facts.kv_bytes_per_layer
    return Plan(
        strategy=config.strategy["name"],
        num_layers=num_layers,
        kept_layers=kept,
        prompt_layers="all" if keeps_all else config.prompt_layers,
        target_speedup=config.ratio if strategy.follows_ratio else (1.0 if keeps_all else None),
        layer_ratio=num_layers / len(kept),
        predicted_speedup=facts.weights.predicted_speedup(kept) if facts.weights else None,
        kv_bytes_per_token=per_layer * num_layers if per_layer else None,
        kept_kv_bytes_per_token=per_layer * len(kept) if per_layer else None,
        warnings=tuple(warnings),
    )


def schedules(config: TrainingConfig, num_layers: int) -> dict[float, tuple[int, ...]]:
    """Kept layers for every ratio that is trained; 1 is the full depth whatever the strategy.

    Raises:
        UsageError: a ratio is out of the strategy's reach.
    """
    strategy: Strategy = instantiate(config.strategy, "strategy")
    everything = tuple(range(num_layers))

    def kept(ratio: float) -> tuple[int, ...]:
        return everything if ratio == 1 else strategy.kept_layers(num_layers, strategy.num_kept(num_layers, ratio))

    return {ratio: kept(ratio) for ratio in config.train.ratios}
