"""Half layers: views whose layers run without their attention or without their MLP.

No modelling code is copied: a dropped part is replaced by a module that adds nothing to the
residual stream. Each layer is checked by running its own code: without both parts it must return
its input.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.core.strategy import ATTENTION
from ulskip_cli.inference import shallow_view

Call = tuple[tuple[Any, ...], dict[str, Any], Any]  # arguments and output of a module
Value = Callable[[Tensor], Tensor]


def half_view(model: PreTrainedModel, kept: Sequence[int], unit: str) -> PreTrainedModel:
    """Return a model that shares the weights, but has its `unit` (attention or mlp) only in the
    `kept` layers.

    With unit=attention, a cache of the view has one entry for each kept attention. Raises
    NotApplicable, a UsageError, if a layer does not add attention and MLP to its input.
    """
    kept = schedule.checked(shallow_view.num_layers(model), kept)
    replaced: dict[nn.Module, nn.Module] = {}
    for index, parts in enumerate(split_layers(model, unit)):
        if index not in kept:
            replaced[parts.layer] = parts.without(unit)
        elif unit == ATTENTION:
            attention = parts.layer.get_submodule(parts.attention)
            replaced[attention] = shallow_view.renumbered(attention, kept.index(index))
    return shallow_view.substituted(model, replaced.get)


class StandIn(nn.Module):
    """A module in place of a part of a layer; it returns a value in the form of the part's output.

    `value` gets the part's input. If the part itself adds to the residual stream, the stand-in does
    too, unless `adds` is False.
    """

    def __init__(self, part: nn.Module, length: int | None, value: Value, adds: bool) -> None:
        """Make a stand-in for a part that returns a tuple of `length`, or a tensor if it is
        None.
        """
        super().__init__()
        self.names = list(inspect.signature(part.forward).parameters)
        self.length, self.value, self.adds = length, value, adds

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the value, [batch, len, hidden_size], and None for every further output of the
        part.
        """
        given = dict(zip(self.names, args, strict=False)) | kwargs
        states, residual = self.value(given[self.names[0]]), given.get("residual")
        states = residual + states if self.adds and residual is not None else states
        return states if self.length is None else (states, *[None] * (self.length - 1))


class SplitLayer:
    """A decoder layer, and the names of its children that are attention and MLP.

    The attention is the child that receives the cache. The MLP consists of all other children that
    have a matrix and whose output is added (experts can be a separate module). The layer is checked
    on random states.
    """

    def __init__(self, layer: nn.Module, calls: Mapping[nn.Module, Call], cache: DynamicCache):
        """Split a layer by the calls of its children in one decode step with `cache`."""
        args, options, _ = calls[layer]
        first, *self._args = args or (options["hidden_states"],)
        self._options = {key: value for key, value in options.items() if key != "hidden_states"}
        generator = torch.Generator().manual_seed(0)
        self._hidden = (3 * torch.randn(first.shape, generator=generator)).to(first)
        self.layer, self._ramp = layer, torch.linspace(1, 7, first.shape[-1]).to(first)
        called = {name: calls[child] for name, child in layer.named_children() if child in calls}
        self._lengths = {
            name: len(output) if isinstance(output, tuple) else None
            for name, (_, _, output) in called.items()
        }
        cached = [
            name
            for name, (args, options, _) in called.items()
            if any(value is cache for value in (*args, *options.values()))
        ]
        parts = {*cached, *(name for name in called if _has_matrix(layer.get_submodule(name)))}
        nothing, ramp = self._nothing(parts), self._ramp
        constants = self._stand_ins(parts, lambda states: ramp.expand(*states.shape[:-1], -1))
        adding = [
            name
            for name in called
            if name in parts and not self._gives({**nothing, name: constants[name]}, self._hidden)
        ]
        self.attention = next(iter(cached), "")
        self.mlp = tuple(name for name in adding if name not in cached)
        # True if the layer adds the outputs of one attention and of an MLP to its input.
        self.is_sum = (
            len(cached) == 1
            and self.attention in adding
            and bool(self.mlp)
            and self._gives(self._nothing(adding), self._hidden)
        )

    def without(self, unit: str) -> nn.Module:
        """Return a copy of the layer without its attention or its MLP, and without the norms that
        only this part reads.
        """
        parts: tuple[Sequence[str], ...] = ([self.attention], self.mlp)
        own, others = parts if unit == ATTENTION else parts[::-1]
        dropped = self._nothing(own)
        # The echo of a state differs from every norm output, and shows if a norm changed its input.
        echoes = self._stand_ins(
            others, lambda states: (states.sin().sum(-1, keepdim=True) * self._ramp).sin()
        )
        expected = self._output({**dropped, **echoes})
        for name, child in self.layer.named_children():
            if name not in (self.attention, *self.mlp) and any(True for _ in child.parameters()):
                skipped = {name: nn.Identity()}
                if self._gives({**dropped, **echoes, **skipped}, expected):
                    dropped |= skipped
        return self._changed(dropped)

    def states_between(
        self, args: tuple[Any, ...], options: Mapping[str, Any], attention: Any
    ) -> Tensor:
        """Return the states [batch, len, hidden_size] between attention and MLP, from the layer's
        arguments and the output `attention`.
        """
        output = _states(attention)
        replayed = self._stand_ins([self.attention], lambda states: output, adds=False)
        children = {**self._nothing(self.mlp), **replayed}
        # a call would run the hooks of the layer
        return _states(self._changed(children).forward(*args, **options))

    def _stand_ins(
        self, names: Iterable[str], value: Value, adds: bool = True
    ) -> dict[str, nn.Module]:
        return {
            name: StandIn(self.layer.get_submodule(name), self._lengths[name], value, adds)
            for name in names
        }

    def _nothing(self, names: Iterable[str]) -> dict[str, nn.Module]:
        width = len(self._ramp)
        return self._stand_ins(names, lambda states: states.new_zeros(*states.shape[:-1], width))

    def _changed(self, children: Mapping[str, nn.Module]) -> nn.Module:
        replaced = {self.layer.get_submodule(name): child for name, child in children.items()}
        return shallow_view.substituted(self.layer, replaced.get)

    def _output(self, children: Mapping[str, nn.Module]) -> Tensor | None:
        """Run the layer with some children replaced on the random states; return None if it cannot
        run.
        """
        try:
            with torch.no_grad():
                output = self._changed(children)(self._hidden, *self._args, **self._options)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            return None
        return _states(output).to(self._hidden.device)

    def _gives(self, children: Mapping[str, nn.Module], expected: Tensor | None) -> bool:
        output = self._output(children)
        return output is not None and expected is not None and torch.equal(output, expected)


def split_layers(model: PreTrainedModel, unit: str) -> list[SplitLayer]:
    """Find attention and MLP of every layer in one decode step; raise NotApplicable if a layer does
    not add them to its input.
    """
    layers, cache = shallow_view.decoder_layers(model), shallow_view.new_cache(model)
    calls: dict[nn.Module, Call] = {}
    reason = "some of its layers have a recurrent state"
    if not shallow_view.is_recurrent(cache):
        ids = torch.zeros(1, 1, dtype=torch.long, device=shallow_view.input_device(model))
        with ExitStack() as hooks, torch.no_grad():
            for module in (part for layer in layers for part in (layer, *layer.children())):
                hook = module.register_forward_hook(
                    lambda module, *call: calls.__setitem__(module, call), with_kwargs=True
                )
                hooks.enter_context(hook)
            shallow_view.forward_with_cache(model, ids, torch.ones_like(ids), cache, last_only=True)
        split = [SplitLayer(layer, calls, cache) for layer in layers]
        odd = next((parts.layer for parts in split if not parts.is_sum), None)
        if odd is None:
            return split
        reason = (
            f"its {type(odd).__name__} does not just add the outputs of one attention and an MLP to"
            " its input"
        )
    raise NotApplicable(
        f"strategy.unit={unit} is not supported with {type(model).__name__}: {reason}; use"
        " strategy.unit=layer"
    )


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())
