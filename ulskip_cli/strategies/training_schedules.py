"""Choose the schedules and the early exits that a training run trains, for each target speedup."""

from collections.abc import Sequence

from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import Stage

TYPICAL_LENGTH = 32  # tokens of a response while the lengths of the data are unknown


def schedules(
    config: TrainingConfig, num_layers: int, lengths: Sequence[int] | None = None
) -> dict[float, tuple[Stage, ...]]:
    """Return the stages to train for each ratio, or raise UsageError; positional strategies use
    `lengths` (response tokens).
    """
    strategy = config.strategy
    full_depth = (Stage(0, tuple(range(num_layers))),)
    if strategy.exits_early:
        trained_exits(config, num_layers)  # checks the exits
        return dict.fromkeys(config.train.ratios, full_depth)
    if not strategy.is_calibrated and not strategy.is_positional:
        name = strategy.name
        raise UsageError(
            f"training with strategy={name} requires calibrated options; run `ulskip run"
            f" strategy={name}`, and pass the values under calibration.options in the new row as"
            " strategy.KEY=VALUE"
        )

    def stages(ratio: float) -> tuple[Stage, ...]:
        if ratio == 1:
            return full_depth
        return strategy.stages(
            num_layers, strategy.num_kept(num_layers, ratio), lengths or [TYPICAL_LENGTH]
        )

    return {ratio: stages(ratio) for ratio in config.train.ratios}


def trained_exits(config: TrainingConfig, num_layers: int) -> tuple[int, ...]:
    """Return the depths at which early-exit training computes a loss, the full depth last; empty
    for other strategies.
    """
    rule = config.strategy.exit_rule(num_layers, num_layers, 1)
    if rule is None:
        return ()
    checks = rule.checks
    if not checks:
        raise UsageError(
            f"expected an exit before the last of {num_layers} layers to train; lower"
            " strategy.min_exit"
        )
    return (*checks, num_layers)
