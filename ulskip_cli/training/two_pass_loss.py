"""The two-pass loss (Sec. 3, arXiv:2404.06954) as one module, which Trainer and DDP can wrap."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ulskip_cli.core.config_schema import LoraOptions, TrainOptions
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import Layers, Stage
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import (
    EncodedPrompt,
    divergence,
    encode_prompt,
    predict_response,
)
from ulskip_cli.training.data import IGNORED_LABEL, LossBatch

PEFT_NAME = "default"  # peft's name of LoRA


class LossWeights(NamedTuple):
    """The weights of the terms of the loss."""

    cross_entropy: float = 1.0
    distillation: float = 0.0  # divergence from the model at full depth
    gap: float = 0.0  # the gap loss of a skip adapter

    @classmethod
    def of(cls, train: TrainOptions) -> "LossWeights":
        """Return the weights of a training."""
        return cls(train.ce_weight, train.distill_weight, train.gap_weight)


CROSS_ENTROPY = LossWeights()  # the cross-entropy alone


class TwoPassLoss(nn.Module):
    """The training loss of a causal LM. Its `state_dict` has each trained tensor once, and nothing
    else.
    """

    # Trainer then passes num_items_in_batch, so all tokens of a step have the same weight.
    accepts_loss_kwargs = True
    model: PreTrainedModel
    _keys_to_ignore_on_save = None  # which Trainer reads when it loads a checkpoint

    def __init__(
        self,
        model: PreTrainedModel,
        prompt_layers: str = "all",
        loss_weights: LossWeights = CROSS_ENTROPY,
        exits: Collection[int] = (),
    ) -> None:
        """Wrap a causal LM; views are built when the weights are on their final device.
        `prompt_layers` is `all`, or `kept` if the kept layers read the prompts too. With the depths
        `exits`, it is the early-exit loss.
        """
        super().__init__()
        self.model = model
        self.all_layers = tuple(range(shallow_view.num_layers(self.model)))
        self.prompt_layers = prompt_layers
        self.loss_weights = loss_weights
        self.exits = tuple(exits)
        # A dict hides these modules from nn.Module, because their weights are the model's.
        self._views: dict[Layers, PreTrainedModel] = {}
        self._layerwise_views: dict[Layers, LayerwiseModel] = {}

    @property
    def config(self) -> object:
        """The model's configuration, which Trainer reads."""
        return self.model.config

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        labels: Tensor,
        stages: tuple[Stage, ...] = (),
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Return the mean `loss` of a batch, a scalar; Trainer passes the tensors of `LossBatch` by
        name. Early exit ignores `stages`, the schedule of the response. `num_items_in_batch` is the
        number of labels in the whole optimizer step; None means those of this batch.
        """
        batch = LossBatch(prompt_ids, prompt_mask, response_ids, labels)
        if self.exits:
            total = depth_weighted_mean(self.exit_losses(batch))  # over depths, summed over labels
        else:
            total = self.schedule_loss(batch, stages, self.loss_weights)
        count = batch.is_labelled.sum() if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / count}

    def schedule_loss(
        self, batch: LossBatch, stages: tuple[Stage, ...], weights: LossWeights
    ) -> Tensor:
        """Compute the loss of a batch under a schedule, summed over the labelled positions."""
        full_prompt = None
        if self.prompt_layers == "all":
            full_prompt = encode_prompt(self.model, batch.prompt_ids, batch.prompt_mask)
        logits = self._logits(batch, stages, full_prompt)
        loss = weights.cross_entropy * self._cross_entropy(logits, batch.labels)
        # Later stages keep fewer layers. If the last keeps all, the schedule is its own target.
        is_full_depth = stages[-1].kept_layers == self.all_layers
        if weights.distillation and not is_full_depth:
            with torch.no_grad():
                target = self._logits(batch, (Stage(0, self.all_layers),), full_prompt)
            labelled = batch.is_labelled
            loss = loss + weights.distillation * divergence(target[labelled], logits[labelled])
        return loss

    def exit_losses(self, batch: LossBatch) -> Iterator[tuple[int, Tensor]]:
        """Yield the depth of every exit, ascending, and the cross-entropy of the batch if all
        tokens exit there, summed in nats (CALM, Schuster et al. 2022, arXiv:2207.07061). Keys and
        values are the full model's. Only one exit's logits are in memory at a time; the backward
        pass computes them again.
        """
        layerwise = self._layerwise(self.all_layers)
        prompt = encode_prompt(self.model, batch.prompt_ids, batch.prompt_mask)
        # The first token is chosen at full depth, so its loss is the same for every exit.
        first_loss = self._cross_entropy(prompt.first_logits, batch.labels[:, :1])
        if batch.response_ids.shape[1] == 1:
            yield from ((depth, first_loss) for depth in sorted(self.exits))
            return

        def loss_at(hidden: Tensor) -> Tensor:
            return self._cross_entropy(layerwise.logits(hidden), batch.labels[:, 1:])

        # Early exit reads only keys of the full model, so one pass over the response gives the
        # states of all its decode steps.
        inputs = layerwise.layer_inputs_after(prompt, batch.response_ids[:, :-1], batch.is_labelled)
        for depth, hidden in enumerate(layerwise.states(inputs)):
            if depth in self.exits:
                loss: Tensor = checkpoint(loss_at, hidden, use_reentrant=False)
                yield depth, first_loss + loss

    def _layerwise(self, kept: Layers) -> LayerwiseModel:
        if kept not in self._layerwise_views:
            self._layerwise_views[kept] = LayerwiseModel(self._view(kept))
        return self._layerwise_views[kept]

    def train(self, mode: bool = True) -> "TwoPassLoss":
        """Set the training or evaluation mode of the model and its views."""
        super().train(mode)
        for view in self._views.values():
            view.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the trained tensors by their names in this module."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {
            name: tensor
            for name, tensor in super().state_dict(*args, **kwargs).items()
            if name in trained
        }

    def _view(self, kept: Layers) -> PreTrainedModel:
        if kept == self.all_layers:
            return self.model
        if kept not in self._views:
            self._views[kept] = shallow_view.shallow_view(self.model, kept).train(self.training)
        return self._views[kept]

    def _logits(
        self, batch: LossBatch, stages: tuple[Stage, ...], full_prompt: EncodedPrompt | None
    ) -> Tensor:
        """Return the logits [batch, response_len, vocab_size] of the responses under a schedule,
        after the prompt that all layers read; without `full_prompt`, the layers of the first stage
        read it.
        """
        if full_prompt is None:
            prompt_layers = stages[0].kept_layers
            view = self._view(prompt_layers)
            prompt = encode_prompt(view, batch.prompt_ids, batch.prompt_mask)
        else:
            prompt_layers, prompt = self.all_layers, full_prompt
        views = shallow_view.stage_views(stages, prompt_layers, self._view)
        return predict_response(views, prompt, batch.response_ids, batch.is_labelled)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over the labelled positions of the logits [batch, length, vocab_size]."""
        return functional.cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )


def depth_weighted_mean(losses: Iterator[tuple[int, Tensor]]) -> Tensor:
    """Average the losses of all exits with weights in proportion to their depth, so that deep exits
    stay accurate.

    >>> float(depth_weighted_mean(iter([(1, torch.tensor(4.0)), (3, torch.tensor(8.0))])))
    7.0
    """
    weighted_sum, sum_of_depths = torch.zeros(()), 0
    for depth, loss in losses:
        weighted_sum = weighted_sum.to(loss.device) + depth * loss
        sum_of_depths += depth
    return weighted_sum / sum_of_depths


def with_lora(
    model: PreTrainedModel, layers: Sequence[int], lora: LoraOptions
) -> tuple[PreTrainedModel, dict[str, tuple[int, str]]]:
    """Return a copy of a model that shares its weights, with LoRA, which alone is trained, on all
    linear layers of `layers`. Also return the (layer, path in the layer) of each adapted module by
    its path in the copy; none if the rank is 0.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # A copy of all modules, because peft replaces some.
    copied = shallow_view.with_attributes(
        model, lambda part: {"_parameters": dict(part._parameters)}
    )
    if not lora.rank:  # a skip adapter of patches alone
        return copied.requires_grad_(False), {}
    prefix, stack = shallow_view.layer_stack(copied)
    paths = {
        f"{prefix}.{layer}.{name}": (layer, name)
        for layer in layers
        for name, module in stack[layer].named_modules()
        if type(module) in shallow_view.LINEARS
    }
    if not paths:
        raise UsageError(
            "LoRA requires plain linear layers, got none: those of this model are quantized or of a"
            " class of their own; with train=adapter use train.lora.rank=0"
        )
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(paths))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft corrects it for Conv1D
        inject_adapter_in_model(config, copied, PEFT_NAME)
    for parameter in copied.parameters():
        if parameter.requires_grad:  # bfloat16 would round small updates to zero
            parameter.data = parameter.data.float()
    return copied, paths


def merged_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with its LoRA, if it has any, merged into the weights of `model`."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.merge()
    return shallow_view.substituted(model, {layer: layer.base_layer for layer in layers})
