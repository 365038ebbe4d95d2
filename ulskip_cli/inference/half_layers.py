"""Half layers: views whose layers run without their attention or without their MLP.

No modelling code is copied: a dropped part is replaced by a module that adds nothing to the residual stream. Each layer is
checked on its own code: without both parts it must return its input.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ulskip_cli.core.config_schema import ATTENTION
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.inference import architecture_support, shallow_view
from ulskip_cli.strategies import schedule

Value = Callable[[Tensor, Tensor | None], Tensor]
_LAYER_ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError)  # of a layer that needs more of a part


def half_view(model: PreTrainedModel, kept: Sequence[int], unit: str) -> PreTrainedModel:
    """Return a model in which only the `kept` layers have their `unit`, attention or mlp; it shares the weights.

    With unit=attention, a cache of the view has one entry for each kept attention. Raises NotApplicable, a UsageError, if
    attention and MLP of a layer do not add to its input.
    """
    kept = schedule.checked(shallow_view.num_layers(model), kept)
    replaced: dict[int, nn.Module] = {}
    for index, parts in enumerate(split_layers(model, unit)):
        if index not in kept:
            replaced[id(parts.layer)] = parts.without(unit)
        elif unit == ATTENTION:
            attention = parts.layer.get_submodule(parts.attention)
            replaced[id(attention)] = shallow_view.renumbered(attention, kept.index(index))
    view = shallow_view.substituted(model, lambda module: replaced.get(id(module)))
    assert isinstance(view, PreTrainedModel)
    return view


class StandIn(nn.Module):
    """A module in place of a part of a layer; it returns a value in the form of the part's output.

    `value` gets the part's input and, if the part itself adds to the residual stream, the residual.
    """

    def __init__(self, part: nn.Module, length: int | None, value: Value) -> None:
        """Make a stand-in for a part that returns a tuple of `length`, or a tensor if it is None."""
        super().__init__()
        names = list(inspect.signature(part.forward).parameters)
        self.states_name, self.length, self.value = names[0], length, value
        self.residual_index = names.index("residual") if "residual" in names else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the value, [batch, len, hidden_size], and None for every further output of the part."""
        residual = kwargs.get("residual")
        if self.residual_index is not None and self.residual_index < len(args):
            residual = args[self.residual_index]
        states = self.value(args[0] if args else kwargs[self.states_name], residual)
        return states if self.length is None else (states, *[None] * (self.length - 1))


@dataclass(frozen=True)
class LayerParts:
    """A decoder layer, the names of its children that are attention and MLP, and the arguments of one call."""

    layer: nn.Module
    attention: str
    mlp: tuple[str, ...]  # several if the layer holds the linear layers of its MLP itself
    lengths: Mapping[str, int | None]  # of the tuple that a child returns; None if it returns a tensor
    hidden: Tensor  # [1, 1, hidden_size], random states that check the layer
    arguments: tuple[tuple[Any, ...], dict[str, Any]]  # of the layer, except the hidden states
    model_name: str

    def without(self, unit: str) -> nn.Module:
        """Return a copy of the layer without its attention or its MLP; raise NotApplicable if it cannot run so."""
        own, others = ([self.attention], self.mlp) if unit == ATTENTION else (self.mlp, [self.attention])
        dropped = self._stand_ins(own, _nothing)
        alone = self._output({**dropped, **self._stand_ins(others, _nothing)})
        if alone is None or not torch.equal(alone, self.hidden):
            reason = f"its {type(self.layer).__name__} does more than add the outputs of attention and MLP to its input"
            raise _refusal(unit, self.model_name, reason)
        echoes = self._stand_ins(others, partial(_echo, torch.linspace(1, 7, self.hidden.shape[-1]).to(self.hidden)))
        expected = self._output({**dropped, **echoes})
        for name, child in self.layer.named_children():
            if name in (self.attention, *self.mlp) or next(child.parameters(), None) is None:
                continue
            output = self._output({**dropped, **echoes, name: nn.Identity()})
            if output is not None and expected is not None and torch.equal(output, expected):  # a norm of the dropped part
                dropped[name] = nn.Identity()
        return self._with(dropped)

    def states_between(self, args: tuple[Any, ...], options: Mapping[str, Any], attention: Any) -> Tensor:
        """Return the states [batch, len, hidden_size] after the attention, from the layer's arguments and its output."""
        output = _states(attention)
        parts = {**self._stand_ins([self.attention], lambda states, residual: output), **self._stand_ins(self.mlp, _nothing)}
        return _states(self._with(parts).forward(*args, **options))  # a call would run the hooks of the layer

    def _stand_ins(self, names: Sequence[str], value: Value) -> dict[str, nn.Module]:
        return {name: StandIn(self.layer.get_submodule(name), self.lengths[name], value) for name in names}

    def _with(self, children: Mapping[str, nn.Module]) -> nn.Module:
        replaced = {id(self.layer.get_submodule(name)): child for name, child in children.items()}
        return shallow_view.substituted(self.layer, lambda module: replaced.get(id(module)))

    def _output(self, children: Mapping[str, nn.Module]) -> Tensor | None:
        """Run the layer with some children replaced on the random states; return None if it cannot run."""
        args, options = self.arguments
        try:
            with torch.no_grad():
                return _states(self._with(children)(self.hidden, *args, **options))
        except _LAYER_ERRORS:
            return None


def split_layers(model: PreTrainedModel, unit: str) -> list[LayerParts]:
    """Find attention and MLP of every layer in one decode step; raise NotApplicable for a layer without one of each.

    The attention is the child that gets the cache, and the MLP is every other child with a matrix.
    """
    layers, cache = shallow_view.decoder_layers(model), shallow_view.new_cache(model)
    name = type(model).__name__
    if architecture_support.is_recurrent(cache):
        raise _refusal(unit, name, "some of its layers have a recurrent state")
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        calls[id(module)] = args, options, output

    ids = torch.zeros(1, 1, dtype=torch.long, device=shallow_view.input_device(model))
    with ExitStack() as hooks, torch.no_grad():
        for layer in layers:
            for module in (layer, *layer.children()):
                hooks.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        shallow_view.forward_with_cache(model, ids, torch.ones_like(ids), cache, last_only=True)

    def parts_of(layer: nn.Module) -> LayerParts:
        called = {child: calls[id(module)] for child, module in layer.named_children() if id(module) in calls}
        cached = [
            child for child, (args, options, _) in called.items() if any(one is cache for one in (*args, *options.values()))
        ]
        mlp = [child for child in called if child not in cached and _has_matrix(layer.get_submodule(child))]
        if len(cached) != 1 or not mlp:
            raise _refusal(unit, name, f"expected one attention and an MLP in {type(layer).__name__}, got {cached} and {mlp}")
        args, options, _ = calls[id(layer)]
        first, *rest = args or (options["hidden_states"],)
        random = 3 * torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
        return LayerParts(
            layer,
            cached[0],
            tuple(mlp),
            {child: len(output) if isinstance(output, tuple) else None for child, (_, _, output) in called.items()},
            random.to(first),
            (tuple(rest), {key: value for key, value in options.items() if key != "hidden_states"}),
            name,
        )

    return [parts_of(layer) for layer in layers]


def _nothing(states: Tensor, residual: Tensor | None) -> Tensor:
    return torch.zeros_like(states) if residual is None else residual


def _echo(scale: Tensor, states: Tensor, residual: Tensor | None) -> Tensor:
    # The scale differs between channels, so that a norm before or after the echo changes the result.
    return states * scale if residual is None else residual + states * scale


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _refusal(unit: str, model_name: str, reason: str) -> NotApplicable:
    return NotApplicable(f"strategy.unit={unit} is not supported with {model_name}: {reason}; use strategy.unit=layer")
