"""A model taken apart at its layers: what comes before them, each on its own, what comes after; for any architecture.

No forward pass is written anew. What comes before the layers is the model's own forward with layers that note how they are
called; what comes after is the model's own again, behind a single layer that gives a hidden state out.
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
    """How a forward pass enters the layers.

    Attributes:
        hidden: [batch, count, hidden_size], what the first layer gets.
        calls: of every layer, what else it gets: masks, position embeddings, the cache.
    """

    hidden: Tensor
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]


class LayerwiseModel:
    """A causal LM whose layers are run one by one, by whoever wants to look between them."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a model or a view apart; it is not touched, and every weight stays its own.

        Args:
            model: whose parts they are, where it will stay.
        """
        self.layers = shallow_view.decoder_layers(model)
        self._notes: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        device = shallow_view.input_device(model)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # for a training goes on after this
            self._take_apart(model)

    def _take_apart(self, model: PreTrainedModel) -> None:
        self._in_tuples, after = _probe(model)
        places = {id(layer): i for i, layer in enumerate(self.layers)}
        self._before = shallow_view.substituted(model, lambda part: self._noting(places.get(id(part))))
        self._gives = _ReplayLayer(self._in_tuples)
        one = shallow_view.shallow_view(model, (0,))
        first = shallow_view.decoder_layers(one)[0]
        self._after = shallow_view.substituted(one, lambda part: self._gives if part is first else None)
        self._chain = [module for module, _, _ in after]
        if not self._is_chain(model):
            self._chain = []

    def enter(self, input_ids: Tensor, cache: DynamicCache, **options: Any) -> LayerInputs:
        """What comes before the layers.

        Args:
            input_ids: [batch, count].
            cache: that the layers will read and write; it is looked at for its length alone.
            options: what else the model's forward takes, masks and positions.
        """
        notes: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._notes = notes
        try:
            self._before(input_ids=input_ids, cache=cache, use_cache=True, **options)
        except _EnteredError as entered:
            return LayerInputs(entered.hidden, notes)
        raise AssertionError("the last layer was not reached")

    def layer(self, index: int, hidden: Tensor, entry: LayerInputs) -> Tensor:
        """One layer's output [batch, count, hidden_size], called as its model calls it."""
        args, options = entry.calls[index]
        output = self.layers[index](hidden, *args, **options)
        after: Tensor = output[0] if self._in_tuples else output
        return after

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and output head: [batch, count, hidden_size] to [batch, count, vocab_size]."""
        if not self._chain:
            return self._by_model(hidden)
        for module in self._chain:
            hidden = module(hidden)
        return hidden

    def _by_model(self, hidden: Tensor) -> Tensor:
        """The same by the model's own forward, whatever it does behind its layers."""
        self._gives.hidden = hidden
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        logits: Tensor = self._after(input_ids=ids, use_cache=False).logits
        self._gives.hidden = None
        return logits

    def _is_chain(self, model: PreTrainedModel) -> bool:
        """Whether the modules behind the layers, one after another, are all that happens there."""
        size = model.config.get_text_config(decoder=True).hidden_size
        generator = torch.Generator().manual_seed(0)
        hidden = 3 * torch.randn(1, 2, size, generator=generator).to(_device_behind(model), model.dtype)
        try:
            with torch.no_grad():
                return torch.equal(self.logits(hidden), self._by_model(hidden))
        except (TypeError, ValueError, RuntimeError):  # they are no chain
            return False

    def _noting(self, index: int | None) -> nn.Module | None:
        if index is None:
            return None
        return _RecordingLayer(self.layers[index], self, index == len(self.layers) - 1, self._in_tuples)

    def note(self, args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """Take down a layer's call; its hidden state."""
        if args:
            hidden, args = args[0], args[1:]
        else:
            options = dict(options)
            hidden = options.pop("hidden_states")
        self._notes.append((args, options))
        assert isinstance(hidden, Tensor)
        return hidden


class _EnteredError(Exception):
    """All layers' calls are known."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _RecordingLayer(nn.Module):
    """Stands where a layer stood: notes its call and gives its hidden state on; the last one ends the pass."""

    def __init__(self, layer: nn.Module, parts: LayerwiseModel, is_last: bool, in_tuples: bool) -> None:
        super().__init__()
        self.__dict__.update(layer=layer, parts=parts)  # no submodule: nothing of it is run
        self.is_last, self.in_tuples = is_last, in_tuples

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)  # models look at their layers' kinds

    def forward(self, *args: Any, **options: Any) -> Any:
        hidden = self.__dict__["parts"].note(args, options)
        if self.is_last:
            raise _EnteredError(hidden)
        return (hidden,) if self.in_tuples else hidden


class _ReplayLayer(nn.Module):
    """A layer that gives out what it was handed before."""

    def __init__(self, in_tuples: bool) -> None:
        super().__init__()
        self.in_tuples = in_tuples
        self.hidden: Tensor | None = None

    def forward(self, *args: Any, **options: Any) -> Any:
        return (self.hidden,) if self.in_tuples else self.hidden


def _probe(model: PreTrainedModel) -> tuple[bool, list[Call]]:
    """Whether layers give tuples, and what is called behind them, by one step of the model."""
    kinds: list[bool] = []
    last = shallow_view.decoder_layers(model)[-1]
    hook = last.register_forward_hook(lambda module, args, output: kinds.append(isinstance(output, tuple)))
    ids = torch.zeros(1, 1, dtype=torch.long, device=shallow_view.input_device(model))

    def step() -> None:
        shallow_view.forward_with_cache(model, ids, torch.ones_like(ids), shallow_view.new_cache(model), last_only=True)

    try:
        with torch.no_grad():
            calls = calls_after_layers(model, step)
    finally:
        hook.remove()
    return kinds[-1], calls


def calls_after_layers(view: PreTrainedModel, step: Callable[[], None]) -> list[Call]:
    """The modules that a step runs after its last decoder layer, in order, with what each was given."""
    calls: list[Call] = []
    layers = shallow_view.decoder_layers(view)
    inside = {id(module) for layer in layers for module in layer.modules()}
    outside = [module for module in view.modules() if id(module) not in inside and not any(module.children())]

    def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls.append((module, args, options))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in outside]
    hooks.append(layers[-1].register_forward_hook(lambda *_: calls.clear()))
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _device_behind(model: PreTrainedModel) -> torch.device:
    """Where what comes behind the layers begins."""
    head = model.get_output_embeddings()
    return torch.device(model.device if head is None else head.weight.device)
