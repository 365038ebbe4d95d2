"""A Trainer of transformers with the two-pass loss, batches of similar length and a
learning curve.
"""

import os
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import RunError, UsageError, reason
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.schedule import Stage
from ulskip_cli.inference import loading
from ulskip_cli.inference.batching import longest_first
from ulskip_cli.training.adapter_loss import AdapterLoss
from ulskip_cli.training.data import (
    LossBatch,
    PairCollator,
    SimilarLengthSampler,
    TokenPairs,
    TrainingTexts,
)
from ulskip_cli.training.preflight import trainer_values
from ulskip_cli.training.two_pass_loss import CROSS_ENTROPY, TwoPassLoss


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that `SkipTrainer` needs, derived once from the configuration."""

    config: TrainingConfig
    texts: TrainingTexts
    train: TokenPairs
    validation: TokenPairs | None
    collator: PairCollator
    stages_by_ratio: dict[float, tuple[Stage, ...]]  # the stages of a response, by ratio
    module: TwoPassLoss  # the model with its loss


class SkipTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that draws a schedule for every step, and evaluates the loss under each."""

    def __init__(
        self, setup: TrainingSetup, progress: ProgressCallback, arguments: TrainingArguments
    ) -> None:
        """Prepare a training."""
        self.stages_by_ratio, self.config = setup.stages_by_ratio, setup.config
        self.optimizer: Optimizer | None
        super().__init__(
            model=setup.module,
            args=arguments,
            data_collator=setup.collator,
            train_dataset=setup.train,
            eval_dataset=setup.validation,
            callbacks=[TrainingMonitor(progress, setup.validation is not None)],
        )
        self.remove_callback(PrinterCallback)

    def _run_epoch(self, *args: object, **kwargs: object) -> None:
        """Run an epoch. Resumed at the last step, Trainer would run another."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def compute_loss(
        self, model: object, inputs: Mapping[str, Tensor], *args: object, **kwargs: object
    ) -> object:
        """Compute the loss under a schedule drawn from the seed and the step alone, so that all
        processes and resumed trainings agree.
        """
        rng = random.Random(f"{self.config.seed} {self.state.global_step}")
        (stages,) = rng.choices(list(self.stages_by_ratio.values()))
        return super().compute_loss(model, {**inputs, "stages": stages}, *args, **kwargs)

    def training_step(self, *args: object, **kwargs: object) -> Tensor:
        """Take a step; raise RunError if its loss is not finite, because no later one would be."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            step, rate = self.state.global_step, self.config.train.learning_rate
            advice = f"lower train.learning_rate (now {rate:g}), and set another output=DIR"
            raise RunError(
                f"expected a finite loss, got {loss.item():g} after step {step};"
                f" {advice if step else 'check the weights of the model'}"
            )
        return loss

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Log validation losses in nats per token: the cross-entropy by target ratio
        (`eval_loss_2x`; `1x` is full depth), or of early-exit training by exit depth
        (`eval_loss_6`).
        """
        pairs, size = self.eval_dataset, self.args.per_device_train_batch_size
        totals, num_tokens = defaultdict[str, float](float), 0
        order = longest_first(pairs.lengths())
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for start in range(0, len(order), size):
                tensors = self.data_collator([pairs[i] for i in order[start : start + size]])
                batch = LossBatch(**self._prepare_inputs(tensors))
                for name, loss in self._validation_losses(batch):
                    totals[f"eval_loss_{name}"] += loss.item()
                num_tokens += int(batch.is_labelled.sum())
        self.model.train()
        losses = {name: total / num_tokens for name, total in totals.items()}
        self.log(losses)
        self.control.should_evaluate = False  # or Trainer evaluates the last step again
        return losses

    def _validation_losses(self, batch: LossBatch) -> Iterator[tuple[str, Tensor]]:
        """Yield each exit depth, or 1x (the full model) and each trained ratio, as text, with the
        cross-entropy of the batch, summed over its labelled positions.
        """
        module = self.model
        if module.exits:
            for depth, loss in module.exit_losses(batch):
                yield str(depth), loss
            return
        full_depth = {1.0: (Stage(0, module.all_layers),)}
        for ratio, stages in sorted({**full_depth, **self.stages_by_ratio}.items()):
            yield f"{ratio:g}x", module.schedule_loss(batch, stages, CROSS_ENTROPY)

    def _get_train_sampler(self, train_dataset: object = None) -> Sampler[int]:
        """Return the sampler of similar lengths, which need less padding."""
        examples, batch_size = self.train_dataset, self.args.per_device_train_batch_size
        lengths = examples.lengths()
        if self.config.train.method == "adapter":  # outputs for prompts are kept and cost nothing
            lengths = examples.response_lengths()

        def epoch() -> int:
            return int(self.state.epoch or 0)  # also of a training that is resumed

        return SimilarLengthSampler(lengths, batch_size, self.config.seed, epoch)

    def create_optimizer(self, *args: object, **kwargs: object) -> object:
        """Make the optimizer; patches of a skip adapter have a learning rate of their own."""
        train, module = self.config.train, self.model
        rate, decay = train.learning_rate, train.weight_decay
        if self.optimizer is None and isinstance(module, AdapterLoss):
            lora = [weight for weight in module.model.parameters() if weight.requires_grad]
            groups = [
                {"params": lora, "lr": rate},
                {
                    "params": list(module.patches.parameters()),
                    "lr": self.config.correction.learning_rate,
                },
            ]
            groups = [group for group in groups if group["params"]]
            betas = self.args.adam_beta1, self.args.adam_beta2
            self.optimizer = AdamW(groups, rate, betas, self.args.adam_epsilon, decay)
        return super().create_optimizer(*args, **kwargs)  # keeps an optimizer that is set


class TrainingMonitor(TrainerCallback):  # type: ignore[misc]
    """A callback that shows the progress, and logs and evaluates the last step."""

    def __init__(self, progress: ProgressCallback, evaluates: bool) -> None:
        self._progress, self._evaluates, self._loss = progress, evaluates, ""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Start the progress bar at the first step of this process."""
        if state.global_step:
            self._progress.note(
                f"continues from step {state.global_step} of {state.max_steps}, with the checkpoint"
                f" in {Path(args.output_dir).parent}"
            )
        self._on_progress = self._progress.phase("train", state.max_steps)
        self._on_progress(state.global_step)

    def on_step_end(
        self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Advance the progress bar, log at checkpoints, and log and evaluate at the last step. A
        resumed training begins a new mean of losses at its checkpoint, so all trainings do.
        """
        self._on_progress(state.global_step, self._loss)
        is_last = state.global_step >= state.max_steps
        control.should_log |= control.should_save or is_last
        control.should_evaluate |= is_last and self._evaluates

    def on_log(
        self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Show the loss beside the progress."""
        if "loss" in state.log_history[-1]:
            self._loss = f"loss {float(state.log_history[-1]['loss']):.4g}"


def make_training_arguments(config: TrainingConfig) -> TrainingArguments:
    """Make the arguments of Trainer; raise UsageError for what Trainer refuses, and for a precision
    that it would ignore.
    """
    device = loading.pick_device(config.model.device)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:  # the process's own, not the first
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if device.type == "cpu" and config.train.precision == "fp16":
        raise UsageError(
            "train.precision=fp16 requires a GPU, got a CPU; use train.precision=bf16 or float32"
        )
    try:
        made = TrainingArguments(
            **{
                "dataloader_pin_memory": torch.cuda.is_available(),
                "use_cpu": device.type == "cpu",
                **trainer_values(config),
            }
        )
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        raise UsageError(f"train.training_args: {reason(error)}") from None
    if made.device.type != device.type:
        raise UsageError(
            f"expected transformers to train on model.device={device.type}, got {made.device}; set"
            f" the environment variable ACCELERATE_TORCH_DEVICE={device.type}"
        )
    if made.n_gpu > 1:
        made._n_gpu = 1  # DataParallel would break the views; several GPUs need torchrun
    return made
