"""Decoder layers of decode steps, compiled once for all layers that run the same operations."""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from ulskip_cli.inference import shallow_view

MAX_KINDS = 64  # of layers, for one shape of the steps
Code = Callable[..., Any]


def with_compiled_layers(
    view: PreTrainedModel, shape: tuple[int, int], options: dict[str, Any]
) -> PreTrainedModel:
    """Return a copy of a view whose decoder layers are compiled in its first two steps, which must
    differ in length.

    `shape` is the batch size and the capacity of the KV cache, and `options` are those of
    torch.compile's inductor. Layers of all views with the same shape share their code. The steps
    need a `DynamicCache` of `StaticLayer`.
    """
    layers = {id(layer) for layer in shallow_view.decoder_layers(view)}
    code = _codes.setdefault(shape, _LayerCode(options))

    def replacement(module: nn.Module) -> nn.Module | None:
        return CompiledLayer(module, code) if id(module) in layers else None

    changed = shallow_view.substituted(view, replacement)
    assert isinstance(changed, PreTrainedModel)
    return changed


class CompiledLayer(nn.Module):
    """A decoder layer that runs code which it shares with other layers.

    Its code checks nothing, so tensors may change only in the sizes that differ between its first
    two calls.
    """

    def __init__(self, layer: nn.Module, code: "_LayerCode") -> None:
        super().__init__()
        self.layer = layer
        self._cached = (
            shallow_view.layer_index(layer) or 0
        )  # a layer without an index has no attention, and reads no cache
        self._shared = code
        self._first: list[Any] | None = None  # the inputs of the first call
        self._code: Code | None = None

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the layer that this one has not, because some models read them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer on the arguments that its model passes, with the part of the cache that
        belongs to this layer.
        """
        args = tuple(self._own(arg) for arg in args)
        kwargs = {name: self._own(value) for name, value in kwargs.items()}
        if self._code is not None:
            return self._code(self.layer, *args, **kwargs)
        inputs = pytree.tree_leaves((args, kwargs))
        if self._first is None:
            self._first = [leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in inputs]
            return self.layer(*args, **kwargs)
        for before, now in zip(self._first, inputs, strict=True):
            if isinstance(now, Tensor):
                for i, size in enumerate(before):
                    if now.shape[i] != size:
                        torch._dynamo.mark_dynamic(now, i)
        self._code = self._shared.code_for(self.layer, *args, **kwargs)
        return self._code(self.layer, *args, **kwargs)

    def _own(self, value: Any) -> Any:
        return _LayerCache(value.layers[self._cached]) if isinstance(value, DynamicCache) else value


class _LayerCache(Cache):  # type: ignore[misc]
    """The keys and values of one layer, whatever index the layer asks for."""

    def __init__(self, layer: Any) -> None:
        self.layers = [layer]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of a step, and return all that the step reads."""
        updated: tuple[Tensor, Tensor] = self.layers[0].update(key_states, value_states)
        return updated

    def get_seq_length(self, *args: Any) -> int:
        """Return the number of filled positions."""
        length: int = self.layers[0].get_seq_length()
        return length


class _LayerCode:
    """The compiled code of each kind of layer, for one shape of the steps.

    Two layers are of one kind if the conditions under which torch.compile reuses code hold for
    both. They are checked once per layer, by code that is traced and not compiled; the compiled
    code itself checks nothing.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._kinds: list[Code] = []
        self._kind = 0  # of the layer that ran last
        self._sort = torch.compile(
            own_copy(_run), fullgraph=True, dynamic=False, backend=self._traced
        )

    def code_for(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Code:
        """Return the code of a layer for these arguments; it is compiled when it runs first."""
        with torch._dynamo.config.patch(recompile_limit=MAX_KINDS):
            self._sort(layer, *args, **kwargs)
        return self._kinds[self._kind]

    def _traced(self, graph: torch.fx.GraphModule, inputs: Any) -> Code:
        kind = len(self._kinds)
        options = dict(self._options)  # torch.compile takes the filter of conditions out of it
        self._kinds.append(
            torch.compile(own_copy(_run), fullgraph=True, dynamic=False, options=options)
        )

        def run(*args: Any) -> Any:
            self._kind = kind
            return graph(*args)

        return run


_codes: dict[tuple[int, int], _LayerCode] = {}  # by shape


def _run(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return layer(*args, **kwargs)


def own_copy(function: Any) -> Code:
    """Return a copy of a function with a code object of its own, because torch.compile stores its
    results by code object.
    """
    return types.FunctionType(function.__code__.replace(), function.__globals__)
