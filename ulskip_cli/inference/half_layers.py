"""Half layers: views whose layers run without their attention or without their MLP.

No modelling code is copied: a dropped part is replaced by a module that adds nothing to the
residual stream. Each layer is checked on its own code: without both parts it must return its input.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.core.strategy import ATTENTION
from ulskip_cli.inference import architecture_support, shallow_view

Value = Callable[[Tensor, Tensor | None], Tensor]
_LAYER_ERRORS = (
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    IndexError,
)  # of a layer that needs more of a part


def half_view(model: PreTrainedModel, kept: Sequence[int], unit: str) -> PreTrainedModel:
    """Return a model in which only the `kept` layers have their `unit`, attention or mlp; it shares
    the weights.

    With unit=attention, a cache of the view has one entry for each kept attention. Raises
    NotApplicable, a UsageError, if attention and MLP of a layer do not add to its input.
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
        """Make a stand-in for a part that returns a tuple of `length`, or a tensor if it is
        None.
        """
        super().__init__()
        names = list(inspect.signature(part.forward).parameters)
        self.states_name, self.length, self.value = names[0], length, value
        self.residual_index = names.index("residual") if "residual" in names else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the value, [batch, len, hidden_size], and None for every further output of the
        part.
        """
        residual = kwargs.get("residual")
        if self.residual_index is not None and self.residual_index < len(args):
            residual = args[self.residual_index]
        states = self.value(args[0] if args else kwargs[self.states_name], residual)
        return states if self.length is None else (states, *[None] * (self.length - 1))


@dataclass(frozen=True)
class LayerCall:
    """One call of a decoder layer, whose children can be replaced."""

    layer: nn.Module
    hidden: Tensor  # [1, 1, hidden_size], random states that check the layer
    arguments: tuple[tuple[Any, ...], dict[str, Any]]  # of the layer, except the hidden states
    lengths: Mapping[
        str, int | None
    ]  # of the tuple that a child returns; None if it returns a tensor

    def stand_ins(self, names: Iterable[str], value: Value) -> dict[str, nn.Module]:
        """Return a module that returns a value, for each of some children."""
        return {
            name: StandIn(self.layer.get_submodule(name), self.lengths[name], value)
            for name in names
        }

    def without(self, names: Iterable[str]) -> dict[str, nn.Module]:
        """Return a module that adds nothing, for each of some children."""
        return self.stand_ins(names, partial(_nothing, self.hidden.shape[-1]))

    def changed(self, children: Mapping[str, nn.Module]) -> nn.Module:
        """Return a copy of the layer with some children replaced."""
        replaced = {id(self.layer.get_submodule(name)): child for name, child in children.items()}
        return shallow_view.substituted(self.layer, lambda module: replaced.get(id(module)))

    def output(self, children: Mapping[str, nn.Module]) -> Tensor | None:
        """Run the layer with some children replaced on the random states; return None if it cannot
        run.
        """
        args, options = self.arguments
        try:
            with torch.no_grad():
                return _states(self.changed(children)(self.hidden, *args, **options)).to(
                    self.hidden.device
                )
        except _LAYER_ERRORS:
            return None

    def gives(self, children: Mapping[str, nn.Module], expected: Tensor | None) -> bool:
        """Return True if the layer with some children replaced can run and returns exactly the
        expected states.
        """
        output = self.output(children)
        return output is not None and expected is not None and torch.equal(output, expected)


@dataclass(frozen=True)
class LayerParts:
    """A decoder layer and the names of its children that are attention and MLP."""

    call: LayerCall
    attention: str
    mlp: tuple[
        str, ...
    ]  # the modules that add to the residual stream; several if experts have a module of their own

    @property
    def layer(self) -> nn.Module:
        """The decoder layer."""
        return self.call.layer

    def without(self, unit: str) -> nn.Module:
        """Return a copy of the layer without its attention or its MLP, and without the norms that
        only this part reads.
        """
        own, others = (
            ([self.attention], self.mlp) if unit == ATTENTION else (self.mlp, [self.attention])
        )
        dropped = self.call.without(own)
        # No output of a norm equals an echo, and no norm hides that it changed the input of one.
        slope, offset = (
            torch.linspace(*ends, self.call.hidden.shape[-1]).to(self.call.hidden)
            for ends in ((1, 7), (5, -3))
        )
        echoes = self.call.stand_ins(others, partial(_echo, slope, offset))
        expected = self.call.output({**dropped, **echoes})
        for name, child in self.layer.named_children():
            if name in (self.attention, *self.mlp) or next(child.parameters(), None) is None:
                continue
            if self.call.gives({**dropped, **echoes, name: nn.Identity()}, expected):
                dropped[name] = nn.Identity()
        return self.call.changed(dropped)

    def states_between(
        self, args: tuple[Any, ...], options: Mapping[str, Any], attention: Any
    ) -> Tensor:
        """Return the states [batch, len, hidden_size] after the attention, from the layer's
        arguments and its output.
        """
        output = _states(attention)
        replayed = self.call.stand_ins([self.attention], lambda states, residual: output)
        layer = self.call.changed({**replayed, **self.call.without(self.mlp)})
        return _states(layer.forward(*args, **options))  # a call would run the hooks of the layer


def split_layers(model: PreTrainedModel, unit: str) -> list[LayerParts]:
    """Find attention and MLP of every layer in one decode step; raise NotApplicable if a layer does
    not add them to its input.

    The attention is the child that gets the cache. The MLP is every other child with a matrix whose
    output is added.
    """
    layers, cache = shallow_view.decoder_layers(model), shallow_view.new_cache(model)
    if architecture_support.is_recurrent(cache):
        raise _refusal(unit, model, "some of its layers have a recurrent state")
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}

    def record(
        module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        calls[id(module)] = args, options, output

    ids = torch.zeros(1, 1, dtype=torch.long, device=shallow_view.input_device(model))
    with ExitStack() as hooks, torch.no_grad():
        for layer in layers:
            for module in (layer, *layer.children()):
                hooks.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        shallow_view.forward_with_cache(model, ids, torch.ones_like(ids), cache, last_only=True)

    def parts_of(layer: nn.Module) -> LayerParts:
        called = {
            name: calls[id(child)] for name, child in layer.named_children() if id(child) in calls
        }
        cached = [
            name
            for name, (args, options, _) in called.items()
            if _holds(cache, (*args, *options.values()))
        ]
        others = [
            name for name in called if name not in cached and _has_matrix(layer.get_submodule(name))
        ]
        args, options, _ = calls[id(layer)]
        first, *rest = args or (options["hidden_states"],)
        random = 3 * torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
        further = {key: value for key, value in options.items() if key != "hidden_states"}
        lengths = {
            name: len(output) if isinstance(output, tuple) else None
            for name, (_, _, output) in called.items()
        }
        call = LayerCall(layer, random.to(first), (tuple(rest), further), lengths)
        nothing = call.without((*cached, *others))
        ramp = torch.linspace(1, 7, first.shape[-1]).to(first)
        constants = call.stand_ins((*cached, *others), partial(_constant, ramp))
        adding = [
            name
            for name in nothing
            if not call.gives({**nothing, name: constants[name]}, call.hidden)
        ]
        mlp = tuple(name for name in adding if name not in cached)
        if (
            len(cached) != 1
            or not mlp
            or cached[0] not in adding
            or not call.gives(call.without((*cached, *mlp)), call.hidden)
        ):
            reason = (
                f"its {type(layer).__name__} does not just add the outputs of one attention and an"
                " MLP to its input"
            )
            raise _refusal(unit, model, reason)
        return LayerParts(call, cached[0], mlp)

    return [parts_of(layer) for layer in layers]


def _nothing(width: int, states: Tensor, residual: Tensor | None) -> Tensor:
    return states.new_zeros(*states.shape[:-1], width) if residual is None else residual


def _constant(value: Tensor, states: Tensor, residual: Tensor | None) -> Tensor:
    constant = value.expand(*states.shape[:-1], -1)
    return constant if residual is None else residual + constant


def _echo(slope: Tensor, offset: Tensor, states: Tensor, residual: Tensor | None) -> Tensor:
    weights = torch.linspace(1, 7, states.shape[-1]).to(states)
    echo = (states * weights).mean(-1, keepdim=True) * slope + offset
    return echo if residual is None else residual + echo


def _holds(wanted: object, values: Iterable[Any]) -> bool:
    return any(value is wanted for value in values)


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _refusal(unit: str, model: PreTrainedModel, reason: str) -> NotApplicable:
    name = type(model).__name__
    return NotApplicable(
        f"strategy.unit={unit} is not supported with {name}: {reason}; use strategy.unit=layer"
    )
