"""Choose the schedules and the early exits that a training run trains, for each target speedup."""

from collections.abc import Sequence

from ulskip_cli.core.config import instantiate
from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.strategies import EarlyExitStrategy, NeedsCalibration, PositionalStrategy, Strategy
from ulskip_cli.strategies.schedule import Stage

TYPICAL_LENGTH = 32  # tokens of a response while the lengths of the data are unknown


def schedules(config: TrainingConfig, num_layers: int, lengths: Sequence[int] | None = None) -> dict[float, tuple[Stage, ...]]:
    """Return the stages to train for each ratio, or raise UsageError; positional strategies use `lengths` (response tokens)."""
    strategy: Strategy = instantiate(config.strategy, "strategy")
    full_depth = (Stage(0, tuple(range(num_layers))),)
    if isinstance(strategy, EarlyExitStrategy):
        _check_early_exit_training(config, num_layers)
        return dict.fromkeys(config.train.ratios, full_depth)
    if isinstance(strategy, NeedsCalibration) and not strategy.is_calibrated and not isinstance(strategy, PositionalStrategy):
        name = config.strategy["name"]
        raise UsageError(
            f"training with strategy={name} requires calibrated options; run `ulskip run strategy={name}`, "
            "and pass the values under calibration.options in the new row as strategy.KEY=VALUE"
        )

    def stages(ratio: float) -> tuple[Stage, ...]:
        if ratio == 1:
            return full_depth
        count = strategy.num_kept(num_layers, ratio)
        if isinstance(strategy, PositionalStrategy):
            return strategy.stages(num_layers, count, lengths or [TYPICAL_LENGTH])
        return (Stage(0, strategy.kept_layers(num_layers, count)),)

    return {ratio: stages(ratio) for ratio in config.train.ratios}


def trained_exits(config: TrainingConfig, num_layers: int) -> tuple[int, ...]:
    """Return the depths at which early-exit training computes a loss, the full depth last; empty for other strategies."""
    strategy: Strategy = instantiate(config.strategy, "strategy")
    if not isinstance(strategy, EarlyExitStrategy):
        return ()
    checks = strategy.exit_rule(num_layers, num_layers, 1).checks
    if not checks:
        raise UsageError(f"expected an exit before the last of {num_layers} layers to train; lower strategy.min_exit")
    return (*checks, num_layers)


def _check_early_exit_training(config: TrainingConfig, num_layers: int) -> None:
    trained_exits(config, num_layers)
    name = config.strategy["name"]
    if config.train.method == "adapter":
        raise UsageError(f"train.method=adapter is not supported with strategy={name}; use train.method=lora")
    for key in ("full_weight", "distill_weight"):
        if getattr(config.train, key):
            raise UsageError(f"train.{key} is not supported with strategy={name}, which trains every exit; set train.{key}=0")
    if config.prompt_layers != "all":
        raise UsageError(f"prompt_layers=kept is not supported in training with strategy={name}; use prompt_layers=all")
