"""Checks of a training configuration that need no weights. Imports no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import read_metadata
from ulskip_cli.strategies.training_schedules import schedules

_SET_BY_OWN_KEYS = (
    "output_dir",
    "seed",
    "remove_unused_columns",
    "label_names",
    "disable_tqdm",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "logging_steps",
    "optim",
    "train_sampling_strategy",
    "label_smoothing_factor",
    "load_best_model_at_end",
)


def check_training(config: TrainingConfig) -> None:
    """Raise UsageError for a configuration with which training would fail."""
    check_trainer_arguments(config.train.training_args or {})
    schedules(config, read_metadata(config.model).num_layers)
    config.task.examples()


def check_trainer_arguments(extra: Mapping[str, Any]) -> None:
    """Raise UsageError for Trainer arguments that ulskip's own keys set or that the two-pass loss
    does not support.
    """
    for key in extra:
        if key in _SET_BY_OWN_KEYS:
            raise UsageError(
                f"train.training_args.{key} is not supported; use an ulskip key, e.g."
                " train.learning_rate or seed"
            )
    if any("checkpointing" in key and value for key, value in extra.items()):
        raise UsageError(
            "train.training_args: gradient checkpointing is not supported, because it drops the"
            " prompt's KV cache; lower train.batch_size and raise train.gradient_accumulation_steps"
        )
    if extra.get("fsdp"):
        raise UsageError(
            "train.training_args.fsdp is not supported, because it is untested with shared layers;"
            " use DDP (torchrun) or ZeRO-2"
        )
    if extra.get("deepspeed"):
        source = extra["deepspeed"]
        try:
            settings = (
                source
                if isinstance(source, Mapping)
                else json.loads(Path(source).read_text("utf-8"))
            )
        except (OSError, ValueError) as error:
            raise UsageError(
                f"train.training_args.deepspeed: expected a JSON file, cannot read {source}"
                f" ({error})"
            ) from None
        stage = settings.get("zero_optimization", {}).get("stage", 0)
        if stage not in (0, 1, 2):
            raise UsageError(
                f"train.training_args.deepspeed: expected ZeRO stage 2 or below, got {stage}; stage"
                " 3 splits the weights"
            )
