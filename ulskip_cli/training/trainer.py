"""A subclass of transformers' Trainer with the two-pass loss, batches of similar length and a
learning curve.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.schedule import Stage
from ulskip_cli.core.tracking import flatten
from ulskip_cli.inference import loading
from ulskip_cli.training.adapter_loss import AdapterLoss
from ulskip_cli.training.data import SimilarLengthSampler
from ulskip_cli.training.muon import MuonFactory
from ulskip_cli.training.preflight import check_trainer_arguments
from ulskip_cli.training.record import CurvePoint
from ulskip_cli.training.setup import TrainingSetup
from ulskip_cli.training.two_pass_loss import TwoPassLoss
from ulskip_cli.training.validation import exit_validation_losses, validation_loss


class SkipTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that draws a schedule for every step and evaluates the loss under each schedule."""

    def __init__(
        self,
        setup: TrainingSetup,
        folder: Path,
        progress: ProgressCallback,
        tracker: Mapping[str, Any],
    ) -> None:
        """Prepare a training in a folder; `tracker` are the arguments that log it."""
        self.schedules, self.config, self.data = setup.schedules, setup.config, setup.data
        options = setup.config.train
        evaluates = setup.data.validation is not None
        muon = (
            MuonFactory,
            {
                "lr": options.learning_rate,
                "weight_decay": options.weight_decay,
                "betas": (0.9, 0.98),
            },
        )
        super().__init__(
            model=setup.module,
            args=training_arguments(setup.config, folder, evaluates, tracker),
            data_collator=setup.data.collator,
            train_dataset=setup.data.train,
            eval_dataset=setup.data.validation,
            optimizer_cls_and_kwargs=muon if options.optimizer == "muon" else None,
            callbacks=[TrainingMonitor(progress, folder / "log.jsonl", evaluates)],
        )
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss under the schedule of this step."""
        step, train = self.state.global_step, self.config.train
        inputs = {**inputs, "stages": self.draw_schedule(step)}
        if (
            train.method == "adapter"
            and random.Random(f"{self.config.seed} {step} on policy").random() < train.on_policy
        ):
            inputs["on_policy_seed"] = self.config.seed * 1_000_003 + step
        return super().compute_loss(model, inputs, *args, **kwargs)

    def draw_schedule(self, step: int) -> tuple[Stage, ...]:
        """Draw the schedule of a step from only the seed and the step, so that all processes and
        resumed trainings agree.
        """
        rng = random.Random(f"{self.config.seed} {step}")
        return rng.choices(list(self.schedules.values()), self.config.train.ratio_weights)[0]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compute validation losses in nats per token, by target ratio (`2x`; `1x` is full depth)
        or exit depth (`6`).
        """
        module, validation = self.model, self.data.validation
        assert isinstance(module, TwoPassLoss) and validation is not None
        batch_size = self.args.per_device_train_batch_size
        if module.exits:
            at_exits = exit_validation_losses(module, validation, self.data.collator, batch_size)
            losses = {
                f"eval_loss_{depth}": at_exits[depth] for depth in sorted(at_exits, reverse=True)
            }
        else:
            compared = {1.0: (Stage(0, module.all_layers),), **self.schedules}
            losses = {
                f"eval_loss_{ratio:g}x": validation_loss(
                    module, compared[ratio], validation, self.data.collator, batch_size
                )
                for ratio in sorted(compared)
            }
        self.log(losses)
        self.control.should_evaluate = False  # or Trainer evaluates the last step again
        return losses

    def learning_curve(self) -> tuple[CurvePoint, ...]:
        """Return the evaluations so far, one per step; of several evaluations at a step, the last
        counts.
        """
        curve: dict[int, CurvePoint] = {}
        for entry in self.state.log_history:
            losses = {
                key.removeprefix("eval_loss_"): round(value, 4)
                for key, value in entry.items()
                if "eval_loss_" in key
            }
            if losses:
                curve[entry["step"]] = CurvePoint(step=entry["step"], validation_loss=losses)
        return tuple(curve.values())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        train, batch_size = self.data.train, self.args.per_device_train_batch_size
        # A step of a skip adapter costs the response alone, because the outputs for prompts are
        # kept.
        lengths = (
            train.response_lengths() if self.config.train.method == "adapter" else train.lengths()
        )
        return SimilarLengthSampler(lengths, batch_size, self.config.seed)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Make the optimizer; the patches of a skip adapter have a learning rate of their own."""
        if getattr(self, "optimizer", None) is None and isinstance(self.model, AdapterLoss):
            train, module = self.config.train, self.model
            patches = list(module.patches.parameters())
            known = {id(patch) for patch in patches}
            rest = [
                parameter
                for parameter in module.parameters()
                if parameter.requires_grad and id(parameter) not in known
            ]
            groups = [
                {"params": rest, "lr": train.learning_rate},
                {"params": patches, "lr": self.config.correction.learning_rate},
            ]
            groups = [group for group in groups if group["params"]]
            self.optimizer = torch.optim.AdamW(
                groups, lr=train.learning_rate, weight_decay=train.weight_decay
            )
        return super().create_optimizer(*args, **kwargs)


class TrainingMonitor(TrainerCallback):  # type: ignore[misc]
    """A callback that shows the progress and writes the log."""

    def __init__(self, progress: ProgressCallback, log: Path, evaluates: bool) -> None:
        """Append lines to the file `log`; a resumed training run writes some steps a second
        time.
        """
        self._progress, self._log, self._loss = progress, log, ""
        self._evaluates = evaluates

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the progress bar at the first step of this process."""
        resumed = f", resumed at step {state.global_step}" if state.global_step else ""
        self._on_progress = self._progress.phase(f"train{resumed}", state.max_steps)
        self._on_progress(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the progress bar, log also at checkpoints, and log and evaluate at the last step.

        A resumed training begins a new mean of losses at its checkpoint, as an uninterrupted one
        then does too.
        """
        self._on_progress(state.global_step, self._loss)
        is_last = state.global_step >= state.max_steps
        control.should_log |= control.should_save or is_last
        control.should_evaluate |= is_last and self._evaluates

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Append Trainer's values at this step to the log file, as one line."""
        if "loss" in (logs or {}):
            self._loss = f"loss {float(logs['loss']):.4g}"
        if state.is_world_process_zero:
            append_line(self._log, json.dumps({"step": state.global_step, **(logs or {})}))


class LoggedArguments(TrainingArguments):  # type: ignore[misc]
    """Arguments of Trainer that a tracker stores together with the settings of ulskip."""

    settings: Mapping[str, Any]  # with dotted keys

    def to_dict(self) -> dict[str, Any]:
        """Return all arguments and settings."""
        return {**super().to_dict(), **self.settings}


def training_arguments(
    config: TrainingConfig, folder: Path, evaluates: bool, tracker: Mapping[str, Any]
) -> TrainingArguments:
    """Make the arguments of Trainer for a configuration; raise UsageError if Trainer refuses one or
    it is unsupported.
    """
    train, extra = config.train, dict(config.train.training_args or {})
    check_trainer_arguments(extra)
    values: dict[str, Any] = {
        **tracker,
        "save_total_limit": 2,
        "output_dir": str(folder),
        "seed": config.seed,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "log_level": "error",
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.scheduler,
        "warmup_steps": train.warmup,  # below 1 it is a share of the steps
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "eval_strategy": "steps" if evaluates and train.evaluate_every else "no",
        "eval_steps": train.evaluate_every,
        "save_steps": train.save_every,
        "logging_steps": train.log_every,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": loading.pick_device(config.model.device).type == "cpu",
        "ddp_find_unused_parameters": config.prompt_layers == "kept",
        **extra,
    }
    try:
        made = LoggedArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise UsageError(f"train.training_args: {str(error).splitlines()[0]}") from None
    made.settings = dict(flatten(config.resolved()))
    if made.n_gpu > 1:
        made._n_gpu = 1  # DataParallel would break the views; several GPUs need torchrun
    return made
