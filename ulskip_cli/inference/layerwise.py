"""A model of any architecture, split into the part before the layers, the layers, and the part
after them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.inference import shallow_view

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class LayerInputs:
    """The inputs of all layers in one forward pass."""

    hidden: Tensor  # [batch, count, hidden_size], the input of the first layer
    # further arguments of every layer: masks, position embeddings, the cache
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]


class LayerwiseModel:
    """A causal LM or view whose layers run one by one; the model is not changed and must stay on
    its device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = shallow_view.decoder_layers(model)
        self._recorded: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        device = shallow_view.input_device(model)
        # The probe must not change the random numbers of training.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._in_tuples, after = _probe(model)
            last = self.layers[-1]
            recording = {
                id(layer): _RecordingLayer(layer, self, layer is last, self._in_tuples)
                for layer in self.layers
            }
            # `_before` is the model with layers that record their inputs, `_after` with one layer
            # that returns a given state.
            self._before = shallow_view.substituted(model, lambda part: recording.get(id(part)))
            self._replay = _ReplayLayer(self._in_tuples)
            view = shallow_view.shallow_view(model, (0,))
            only = shallow_view.decoder_layers(view)[0]
            self._after = shallow_view.substituted(
                view, lambda part: self._replay if part is only else None
            )
            self._chain = [module for module, _, _ in after]
            if not self._is_chain(model):
                self._chain = []

    def enter(self, input_ids: Tensor, cache: DynamicCache, **options: Any) -> LayerInputs:
        """Run the part before the layers on `input_ids` [batch, count]; only the length of `cache`
        is read.
        """
        recorded: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._recorded = recorded
        try:
            self._before(input_ids=input_ids, cache=cache, use_cache=True, **options)
        except _EnteredError as entered:
            return LayerInputs(entered.hidden, recorded)
        raise AssertionError("expected a forward pass that reaches the last layer")

    def layer(self, index: int, hidden: Tensor, inputs: LayerInputs) -> Tensor:
        """Run one layer on `hidden` [batch, count, hidden_size] with the arguments in `inputs`;
        return the same shape.
        """
        args, options = inputs.calls[index]
        output = self.layers[index](hidden, *args, **options)
        after: Tensor = output[0] if self._in_tuples else output
        return after

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply final norm and output head: [batch, count, hidden_size] to [batch, count,
        vocab_size].
        """
        if not self._chain:
            return self._by_model(hidden)
        for module in self._chain:
            hidden = module(hidden)
        return hidden

    def _by_model(self, hidden: Tensor) -> Tensor:
        self._replay.hidden = hidden  # the model's own forward, which may scale or cap the logits
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        logits: Tensor = self._after(input_ids=ids, use_cache=False).logits
        self._replay.hidden = None
        return logits

    def _is_chain(self, model: PreTrainedModel) -> bool:
        """Return True if the modules after the layers, run in sequence, compute exactly the model's
        logits.
        """
        size, head = (
            model.config.get_text_config(decoder=True).hidden_size,
            model.get_output_embeddings(),
        )
        device = model.device if head is None else head.weight.device
        hidden = 3 * torch.randn(1, 2, size, generator=torch.Generator().manual_seed(0)).to(
            device, model.dtype
        )
        try:
            with torch.no_grad():
                return torch.equal(self.logits(hidden), self._by_model(hidden))
        except (TypeError, ValueError, RuntimeError):  # the modules do not form a sequence
            return False


class _EnteredError(Exception):
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _RecordingLayer(nn.Module):
    """A layer that records its arguments and returns its input unchanged; the last layer ends the
    forward pass.
    """

    def __init__(
        self, layer: nn.Module, layerwise: LayerwiseModel, is_last: bool, in_tuples: bool
    ) -> None:
        super().__init__()
        self.__dict__.update(
            layer=layer, layerwise=layerwise
        )  # bypasses the registration as submodules
        self.is_last, self.in_tuples = is_last, in_tuples

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)  # models read attributes of their layers

    def forward(self, *args: Any, **options: Any) -> Any:
        hidden, *rest = args or (options.pop("hidden_states"),)
        self.__dict__["layerwise"]._recorded.append((tuple(rest), options))
        if self.is_last:
            raise _EnteredError(hidden)
        return (hidden,) if self.in_tuples else hidden


class _ReplayLayer(nn.Module):
    def __init__(self, in_tuples: bool) -> None:
        super().__init__()
        self.in_tuples = in_tuples
        self.hidden: Tensor | None = None

    def forward(self, *args: Any, **options: Any) -> Any:
        return (self.hidden,) if self.in_tuples else self.hidden


def _probe(model: PreTrainedModel) -> tuple[bool, list[Call]]:
    """Run one step; return whether layers return tuples, and the calls of the modules after the
    layers.
    """
    kinds: list[bool] = []
    last = shallow_view.decoder_layers(model)[-1]
    hook = last.register_forward_hook(
        lambda module, args, output: kinds.append(isinstance(output, tuple))
    )
    ids = torch.zeros(1, 1, dtype=torch.long, device=shallow_view.input_device(model))

    def step() -> None:
        shallow_view.forward_with_cache(
            model, ids, torch.ones_like(ids), shallow_view.new_cache(model), last_only=True
        )

    try:
        with torch.no_grad():
            calls = calls_after_layers(model, step)
    finally:
        hook.remove()
    return kinds[-1], calls


def calls_after_layers(view: PreTrainedModel, step: Callable[[], None]) -> list[Call]:
    """Return the modules that `step` runs after the last decoder layer, in order, with their
    arguments.
    """
    calls: list[Call] = []
    layers = shallow_view.decoder_layers(view)
    inside = {id(module) for layer in layers for module in layer.modules()}
    outside = [
        module
        for module in view.modules()
        if id(module) not in inside and not any(module.children())
    ]

    def record(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls.append((module, args, options))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in outside]
    hooks.append(layers[-1].register_forward_hook(lambda *_: calls.clear()))
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return calls
