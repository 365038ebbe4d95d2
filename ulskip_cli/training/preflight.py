"""The schedules that a training trains, and checks that need no weights and no torch."""

from collections.abc import Sequence
from dataclasses import replace

from ulskip_cli.core.config_schema import BaseConfig, Config, TrainingConfig
from ulskip_cli.core.correction import ADAPTER_FILE, Correction
from ulskip_cli.core.engines import AUTO, engine_named
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject, user_path
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.schedule import Stage, checked_stages
from ulskip_cli.core.strategy import ScheduleRequest
from ulskip_cli.core.task import check_references
from ulskip_cli.strategies.plan import make_plan, schedule_request
from ulskip_cli.strategies.static import KeepAll


def config_at(config: TrainingConfig, ratio: float) -> Config:
    """Return the run, not validated, whose layers a training trains for a ratio."""
    values = {key: getattr(config, key) for key in BaseConfig.model_fields}
    values |= {"correction": Correction(name="none"), "engine": engine_named(AUTO)}
    if ratio == 1:
        values["strategy"] = KeepAll(name="full")
    return Config.model_construct(**values, ratio=ratio, batch_size=1)


def trained_stages(
    config: TrainingConfig, num_layers: int, lengths: Sequence[int] = ScheduleRequest.lengths
) -> dict[float, tuple[Stage, ...]]:
    """Return the stages to train for each ratio. Positional strategies choose them by `lengths`,
    the tokens of each response. Early exit trains all layers.
    """
    stages_by_ratio = dict[float, tuple[Stage, ...]]()
    for ratio in config.train.ratios:
        run = config_at(config, ratio)
        request = replace(schedule_request(run, num_layers), lengths=tuple(lengths))
        stages_by_ratio[ratio] = checked_stages(num_layers, run.strategy.stages(request))
    return stages_by_ratio


def trained_exits(config: TrainingConfig, num_layers: int) -> tuple[int, ...]:
    """Return the depths with a loss in early-exit training, the full depth last; empty
    for others.
    """
    # The depths do not depend on the number of kept layers.
    rule = config.strategy.exit_rule(ScheduleRequest(num_layers, num_layers))
    return (*rule.checks, num_layers) if rule else ()


def check_trainable(config: TrainingConfig) -> None:
    """Raise UsageError or NotApplicable for a configuration with which training would fail."""
    metadata, strategy, train = ModelFolder(config.model).metadata, config.strategy, config.train
    # The training of an adapter supports fewer needs (`COMMANDS` in core/capabilities.py).
    command = "train train.method=adapter" if train.method == "adapter" else "train"
    for ratio in train.ratios:
        make_plan(config_at(config, ratio), metadata, command)  # for its errors
    # Early exit trains all layers, and a positional strategy calibrates only the lengths of
    # answers, which training knows; of others, calibration chooses the layers.
    if not (strategy.is_calibrated or strategy.is_positional or strategy.exits_early):
        raise UsageError(
            f"training with strategy={strategy.name} requires calibrated options; run `ulskip run"
            f" strategy={strategy.name}`, and set strategy.KEY=VALUE for each of"
            " calibration.options in its row"
        )
    trainer_values(config)  # for its errors
    start = train.start
    if start is not None and not (user_path(start, "train.start") / ADAPTER_FILE).is_file():
        raise UsageError(f"expected train.start={start} to be the folder of a skip adapter")
    examples = config.task.examples()  # raises UsageError for missing or invalid data
    if train.responses != "own" or train.held_out:
        check_references(examples, f"train.responses={train.responses}")


# Beginnings of arguments of Trainer that a training cannot have, because the loss needs whole
# weights on every device, the prompt's KV cache, and a module of its own.
UNFIT = ("deepspeed", "fsdp", "gradient_checkpointing", "activation_checkpointing", "neftune")
# Arguments that keep the default of Trainer, because loss, evaluation or resuming relies on it.
UNCHANGED = (
    "optim",
    "label_names",
    "train_sampling_strategy",
    "label_smoothing_factor",
    "load_best_model_at_end",
    "save_only_model",
    "eval_on_start",
    "per_device_eval_batch_size",
)


def trainer_values(config: TrainingConfig) -> JsonObject:
    """Return the arguments of Trainer: `fixed` ones follow from ulskip's keys,
    `train.training_args` can change and add to `defaults`. Raise UsageError for others in it.
    """
    train, given = config.train, config.train.training_args or {}
    evaluates = train.evaluate_every and (train.validation or train.held_out)
    fixed: JsonObject = {
        "seed": config.seed,
        "output_dir": str(user_path(config.output, "output") / "checkpoints"),
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "learning_rate": train.learning_rate,
        "warmup_steps": train.warmup,  # below 1 it is a share of the steps
        "weight_decay": train.weight_decay,
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": train.evaluate_every,
        "save_steps": train.save_every,
        "logging_steps": train.log_every,
    }
    defaults: JsonObject = {
        "save_total_limit": 2,
        "log_level": "error",
        "lr_scheduler_type": "cosine",
        "logging_nan_inf_filter": False,
        "logging_first_step": True,
        # A step then has no gradient for skipped layers, or for the patches of other schedules.
        "ddp_find_unused_parameters": config.prompt_layers == "kept" or train.method == "adapter",
    }
    _check_given(given, fixed)
    return {**defaults, **fixed, **given}


def _check_given(given: JsonObject, fixed: JsonObject) -> None:
    """Raise UsageError if `train.training_args` names a fixed argument, or one that the training
    cannot have.
    """
    if given.get("lr_scheduler_type") == "reduce_lr_on_plateau":  # it needs one validation loss
        raise UsageError(
            "train.training_args.lr_scheduler_type=reduce_lr_on_plateau is not supported; use"
            " another, e.g. cosine"
        )
    for name in given:
        if name in fixed or name in UNCHANGED or name.startswith(UNFIT):
            raise UsageError(
                f"train.training_args.{name} is not supported; use ulskip's keys, e.g."
                " train.learning_rate, or for less memory train.batch_size and"
                " train.gradient_accumulation_steps"
            )
