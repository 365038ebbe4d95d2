"""transformers' Trainer with our loss, order of examples and learning curve; everything else is its own."""

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.strategies.schedule import Stage
from ulskip_cli.training.data import PairCollator, SimilarLengths, TokenPairs, collator_for
from ulskip_cli.training.muon import MuonFactory
from ulskip_cli.training.preflight import check_trainer_arguments
from ulskip_cli.training.two_pass import IGNORED, TwoPass


class SkipTrainer(Trainer):  # type: ignore[misc]
    """Draws a schedule for every step; evaluates the two-pass loss under each."""

    def __init__(
        self,
        module: TwoPass,
        schedules: Mapping[float, tuple[Stage, ...]],
        config: TrainingConfig,
        tokenizer: PreTrainedTokenizerBase,
        train: TokenPairs,
        validation: TokenPairs | None,
        folder: Path,
        progress: ProgressCallback,
        device: str,
    ) -> None:
        """A trainer that checkpoints in `folder`.

        Args:
            module: the model and its loss.
            schedules: by ratio.
            config: everything else that matters.
            tokenizer: the model's.
            train: examples to learn from.
            validation: examples of the learning curve.
            folder: checkpoints and the log.
            progress: who watches.
            device: `cpu` keeps it off an accelerator that is there.
        """
        self.schedules, self.config = schedules, config
        self.collator: PairCollator = collator_for(tokenizer)
        options = config.train
        muon = (MuonFactory, {"lr": options.learning_rate, "weight_decay": options.weight_decay, "betas": (0.9, 0.98)})
        super().__init__(
            model=module,
            args=arguments(config, folder, validation is not None, device),
            data_collator=self.collator,
            train_dataset=train,
            eval_dataset=validation,
            optimizer_cls_and_kwargs=muon if options.optimizer == "muon" else None,
            callbacks=[Watcher(progress, folder / "log.jsonl")],
        )
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss under the schedule of this step."""
        first, *later = self.drawn(self.state.global_step)
        return super().compute_loss(model, {**inputs, "kept": first.kept_layers, "later": tuple(later)}, *args, **kwargs)

    def drawn(self, step: int) -> tuple[Stage, ...]:
        """The schedule of a step: from seed and step alone, so that every process and every resumption agrees."""
        rng = random.Random(f"{self.config.seed} {step}")
        return rng.choices(list(self.schedules.values()), self.config.train.ratio_weights)[0]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compute a point of the learning curve: mean cross-entropy a token, in nats.

        Its keys are target ratios (`2x`), with `1x` for the full depth. With exits they are the exits' depths (`6`).
        """
        assert isinstance(self.model, TwoPass) and isinstance(self.eval_dataset, TokenPairs)
        batch_size = self.args.per_device_train_batch_size
        if self.model.exits:
            at_exits = exit_validation_losses(self.model, self.eval_dataset, self.collator, batch_size)
            losses = {f"eval_loss_{count}": at_exits[count] for count in sorted(at_exits, reverse=True)}
            self.log(losses)
            return losses
        depth = self.model.base.config.get_text_config(decoder=True).num_hidden_layers
        compared = {1.0: (Stage(0, tuple(range(depth))),), **self.schedules}
        losses = {
            f"eval_loss_{ratio:g}x": validation_loss(self.model, compared[ratio], self.eval_dataset, self.collator, batch_size)
            for ratio in sorted(compared)
        }
        self.log(losses)
        return losses

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        assert isinstance(self.train_dataset, TokenPairs)
        return SimilarLengths(self.train_dataset.lengths(), self.args.per_device_train_batch_size, self.config.seed)


class Watcher(TrainerCallback):  # type: ignore[misc]
    """Shows how far the training is, and keeps its log as it comes."""

    def __init__(self, progress: ProgressCallback, log: Path) -> None:
        """Lines are appended to `log`; a resumed training writes some steps again."""
        self._progress, self._log = progress, log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The bar begins where the training does."""
        resumed = f", carried on at step {state.global_step}" if state.global_step else ""
        self._done = self._progress.phase(f"train{resumed}", state.max_steps)
        self._done(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step more."""
        self._done(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """A line."""
        if state.is_world_process_zero:
            append_line(self._log, json.dumps({"step": state.global_step, **(logs or {})}))


def validation_loss(
    module: TwoPass, stages: tuple[Stage, ...], pairs: TokenPairs, collator: PairCollator, batch_size: int
) -> float:
    """Mean cross-entropy of all response tokens under a schedule, without smoothing or distillation, in nats."""
    plain = TwoPass(module.model, module.prompt_layers).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in _batches(module, pairs, collator, batch_size):
            total += plain(**batch, kept=stages[0].kept_layers, later=stages[1:], num_items_in_batch=1)["loss"].item()
            count += int((batch["labels"] != IGNORED).sum())
    module.train()
    return total / count


def exit_validation_losses(module: TwoPass, pairs: TokenPairs, collator: PairCollator, batch_size: int) -> dict[int, float]:
    """The same when every token leaves at one depth, for each exit."""
    plain = TwoPass(module.model, module.prompt_layers, exits=module.exits).eval()
    totals, count = dict.fromkeys(module.exits, 0.0), 0
    with torch.no_grad():
        for batch in _batches(module, pairs, collator, batch_size):
            for depth, loss in plain.exit_losses(**batch):
                totals[depth] += loss.item()
            count += int((batch["labels"] != IGNORED).sum())
    module.train()
    return {depth: total / count for depth, total in totals.items()}


def _batches(module: TwoPass, pairs: TokenPairs, collator: PairCollator, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """All of them, the longest first, where the model is."""
    order = sorted(range(len(pairs)), key=pairs.lengths().__getitem__, reverse=True)
    for start in range(0, len(order), batch_size):
        batch = collator([pairs[i] for i in order[start : start + batch_size]])
        yield {key: value.to(module.base.device) for key, value in batch.items()}


def arguments(config: TrainingConfig, folder: Path, evaluates: bool, device: str) -> TrainingArguments:
    """Trainer's arguments for a configuration.

    Raises:
        UsageError: `train.training_args` holds what is set elsewhere, what is refused, or what Trainer does not know.
    """
    train, extra = config.train, dict(config.train.training_args or {})
    check_trainer_arguments(extra)
    values: dict[str, Any] = {
        "report_to": "none",
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
        "warmup_steps": train.warmup,  # below 1: a share of the steps
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
        "use_cpu": device == "cpu",
        "ddp_find_unused_parameters": config.prompt_layers == "kept",
        **extra,
    }
    try:
        made = TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise UsageError(f"train.training_args: {str(error).splitlines()[0]}") from None
    if made.n_gpu > 1:
        made._n_gpu = 1  # views do not survive DataParallel; several GPUs are for torchrun
    return made


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; what a kill left unfinished is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))  # it is written last
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None
