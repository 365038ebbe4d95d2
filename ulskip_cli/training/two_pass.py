"""The two-pass loss as a module, so that whatever wraps modules (Trainer, DDP, ZeRO-2) wraps both passes."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.inference.teacher_forcing import encode_prompt, predict_response
from ulskip_cli.strategies.schedule import Stage
from ulskip_cli.training.exit_loss import averaged, exit_losses

IGNORED = -100


@dataclass(frozen=True)
class LossWeights:
    """What the loss is made of; see `TrainOptions`."""

    cross_entropy: float = 1.0
    full: float = 0.0
    distill: float = 0.0
    label_smoothing: float = 0.0


class TwoPass(nn.Module):
    """A model whose forward is the training loss: prompt through its layers, response through the kept ones.

    Sec. 3, arXiv:2404.06954. `state_dict` holds what is trained and nothing else, each tensor once: what a
    checkpoint to resume from needs.
    """

    accepts_loss_kwargs = True  # so Trainer passes num_items_in_batch, and a step's tokens all weigh the same

    def __init__(
        self,
        model: nn.Module,
        prompt_layers: str = "all",
        weights: LossWeights | None = None,
        teacher: nn.Module | None = None,
        exits: Collection[int] = (),
    ) -> None:
        """Views are made when a schedule is first used, when the weights are where they will stay.

        Args:
            model: a causal LM, or peft's wrapper of one.
            prompt_layers: `all` or `kept`.
            weights: of the parts of the loss.
            teacher: a frozen causal LM to distill from, or the adapted one itself, which then teaches without its
                adapters; None for the model's own full depth.
            exits: depths that the loss is averaged over, for early exit; none for a schedule.
        """
        super().__init__()
        self.model = model
        self.every = tuple(range(shallow_view.num_layers(self.base)))
        self.prompt_layers = prompt_layers
        self.weights = weights or LossWeights()
        self.exits = tuple(exits)
        self._parts: list[LayerwiseModel] = []  # a list: what is in it is the model's
        self._views: dict[tuple[int, ...], PreTrainedModel] = {}  # a plain dict: their weights are the model's
        self._teacher = [teacher] if teacher is not None else []  # a list: it is no part of what is trained

    @property
    def base(self) -> PreTrainedModel:
        """The causal LM itself."""
        inner: Any = self.model
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    @property
    def config(self) -> Any:
        """The model's."""
        return self.base.config

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        labels: Tensor,
        kept: tuple[int, ...],
        later: tuple[Stage, ...] = (),
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch under a schedule.

        Args:
            prompt_ids: [batch, prompt_len], padded on the left.
            prompt_mask: [batch, prompt_len].
            response_ids: [batch, response_len], padded on the right.
            labels: [batch, response_len], the response with -100 for padding.
            kept: the layers that the response runs through.
            later: from these steps on it runs through fewer.
            num_items_in_batch: labels of the whole optimizer step, over which the mean is taken; None: this batch's.

        Returns:
            `loss`, a scalar.
        """
        if self.exits:
            loss = averaged(self.exit_losses(prompt_ids, prompt_mask, response_ids, labels))
            return {"loss": loss / (num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum())}
        base, view, every, weights = self.base, self._view(kept), self.every, self.weights
        whole = encode_prompt(base, prompt_ids, prompt_mask) if self.prompt_layers == "all" else None
        encoded, inside = (whole, every) if whole else (encode_prompt(view, prompt_ids, prompt_mask), kept)
        response = (response_ids, labels != IGNORED)
        stages = [
            StageView(
                stage.first_step, self._view(stage.kept_layers), tuple(inside.index(layer) for layer in stage.kept_layers)
            )
            for stage in (Stage(0, kept), *later)
        ]
        logits = predict_response(stages, encoded, *response)
        loss = weights.cross_entropy * self._cross_entropy(logits, labels)
        target = self._teacher_logits(prompt_ids, prompt_mask, *response)
        skips = len(kept) < len(every) or later
        if skips and (weights.full or (weights.distill and target is None)):
            with torch.set_grad_enabled(weights.full > 0 and torch.is_grad_enabled()):
                everything = [StageView(0, base, every)]
                full = predict_response(everything, whole or encode_prompt(base, prompt_ids, prompt_mask), *response)
            target = full.detach() if target is None else target
            if weights.full:
                loss = loss + weights.full * self._cross_entropy(full, labels)
        if weights.distill and target is not None:
            loss = loss + weights.distill * divergence(target, logits, labels)
        return {"loss": loss / (num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum())}

    def exit_losses(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, labels: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """The summed cross-entropy of a batch at every exit, with its depth; shapes as for `forward`."""
        if not self._parts:
            self._parts.append(LayerwiseModel(self.base))
        batch = (prompt_ids, prompt_mask, response_ids, labels)
        return exit_losses(self.base, self._parts[0], self.exits, batch, labels != IGNORED, self._cross_entropy)

    def train(self, mode: bool = True) -> "TwoPass":
        """As for any module; views have flags of their own."""
        super().train(mode)
        for view in self._views.values():
            view.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trained tensors, under this module's names."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """What `state_dict` gave; the tensors that it leaves out are not missed."""
        trained = self.state_dict().keys()
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        result.missing_keys[:] = [name for name in result.missing_keys if name in trained]
        if strict and (result.missing_keys or result.unexpected_keys):
            raise RuntimeError(f"missing {result.missing_keys}, unexpected {result.unexpected_keys}")
        return result

    def _view(self, kept: tuple[int, ...]) -> PreTrainedModel:
        if kept == self.every:
            return self.base
        if kept not in self._views:
            self._views[kept] = shallow_view.shallow_view(self.base, kept).train(self.training)
        return self._views[kept]

    def _teacher_logits(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor
    ) -> Tensor | None:
        """The initial model's predictions at full depth; None where the model teaches itself."""
        if not self._teacher or not self.weights.distill:
            return None
        teacher: Any = self._teacher[0].to(prompt_ids.device)
        adapted: Any = self.model
        with torch.no_grad(), adapted.disable_adapter() if teacher is self.base else nullcontext():
            encoded = encode_prompt(teacher, prompt_ids, prompt_mask)
            return predict_response([StageView(0, teacher, self.every)], encoded, response_ids, response_mask)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.weights.label_smoothing,
        )


def divergence(target: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(target || logits), summed over the labelled positions, in nats.

    Args:
        target: [batch, response_len, vocab_size], logits of the teacher.
        logits: [batch, response_len, vocab_size], of the student.
        labels: [batch, response_len], -100 where a position does not count.
    """
    counted = labels != IGNORED
    wanted, got = (functional.log_softmax(one[counted].float(), dim=-1) for one in (target, logits))
    return functional.kl_div(got, wanted, reduction="sum", log_target=True)


def add_dropout(model: PreTrainedModel, probability: float) -> None:
    """Drop a share of the embeddings and of what every layer adds to them, while training.

    For any architecture: hooks on the layers themselves, which views share.
    """

    def on_layer(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not module.training:
            return output
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        dropped = before + functional.dropout(after - before, probability)
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped

    def on_embedding(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return functional.dropout(output, probability, module.training)

    for layer in shallow_view.decoder_layers(model):
        layer.register_forward_hook(on_layer, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(on_embedding)
