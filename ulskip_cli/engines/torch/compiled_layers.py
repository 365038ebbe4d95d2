"""Decoder layers of decode steps, compiled once for all layers that run the same operations."""

import contextlib
import operator
import os
import types
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from ulskip_cli.core.files import cache_dir
from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.engines.torch.static_cache import StaticLayer
from ulskip_cli.inference import shallow_view

MAX_KINDS = 64  # of layers, for one shape of the steps
OPTIONS = {  # of torch.compile's inductor
    # elements for which another CPU thread saves time; torch's 512 is slower for the few rows of a
    # step
    "cpp.min_chunk_size": 8192,
    "size_asserts": False,
}
_COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"
Code = Callable[..., Any]


def with_compiled_layers(view: PreTrainedModel, shape: tuple[int, int]) -> PreTrainedModel:
    """Return a copy of a view whose decoder layers are compiled in its first two steps, which must
    differ in length.

    `shape` is the batch size and the capacity of the KV cache. Layers of all views with the same
    shape share their code. The steps need a `DynamicCache` of `StaticLayer`.
    """
    if shape not in _code_by_shape:
        _cache_compiled_code()
        _code_by_shape[shape] = _LayerCode()
    compiled = {
        layer: CompiledLayer(layer, _code_by_shape[shape])
        for layer in shallow_view.decoder_layers(view)
    }
    return shallow_view.substituted(view, compiled)


class CompiledLayer(shallow_view.StandIn):
    """A decoder layer that runs compiled code, which other layers share.

    The code has no guards. Only sizes that differ between the first two calls may change later, and
    only tensors that are passed as arguments may be other tensors in a later call.
    """

    def __init__(self, layer: nn.Module, code: "_LayerCode") -> None:
        super().__init__(layer)
        # A layer without an index has no attention, and reads no cache.
        self._cached = shallow_view.layer_index(layer) or 0
        self._shared = code
        self._first: list[torch.Size] | None = None  # the shapes in the first call
        self._run: Code | None = None

    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the layer on the arguments that its model passes, with the part of the cache that
        belongs to this layer.
        """
        tensors = _tensors(args, kwargs)
        if self._run is not None:
            return self._run(tensors)
        args = tuple(self._own(arg) for arg in args)
        kwargs = {name: self._own(value) for name, value in kwargs.items()}
        if self._first is None:
            self._first = [tensor.shape for tensor in tensors]
            return self.layer(*args, **kwargs)
        sizes = {}
        for place, (before, tensor) in enumerate(zip(self._first, tensors, strict=True)):
            for i, size in enumerate(tensor.shape):
                if before[i] != size:
                    torch._dynamo.mark_dynamic(tensor, i)
                    sizes[size] = place, i
        self._run, result = self._shared.bind(tensors, sizes, self.layer, args, kwargs)
        return result

    def _own(self, value: object) -> object:
        return _LayerCache(value.layers[self._cached]) if isinstance(value, DynamicCache) else value


def _tensors(args: tuple[object, ...], kwargs: dict[str, object]) -> list[Tensor]:
    """Return the tensors that a model passes to a layer; each call can pass other tensors."""
    tensors = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, tuple):
            tensors += [part for part in value if isinstance(part, Tensor)]
        elif isinstance(value, DynamicCache):
            tensors.append(value.layers[0].cursor.seen)
    return tensors


class _LayerCache(Cache):  # type: ignore[misc]
    """The keys and values of one layer; the layer index of a call is ignored."""

    def __init__(self, layer: StaticLayer) -> None:
        self.layers = [layer]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of a step, and return all that the step reads."""
        return self.layers[0].update(key_states, value_states)

    def get_seq_length(self, *args: object) -> int:
        """Return the number of filled positions."""
        return self.layers[0].get_seq_length()


class _LayerCode:
    """The compiled code of each kind of layer, for one shape of the steps.

    Two layers run the same compiled code if torch.compile's guards accept both. The guards are
    checked once per layer, in a call that torch.compile handles. Later the layer calls the code
    directly, with the same weights and buffers.
    """

    def __init__(self) -> None:
        # the code of the last call with its inputs and outputs
        self._called: list[tuple[Code, list[object], Sequence[Tensor]]] = []
        self._compiled = torch.compile(
            # torch.compile stores its results by code object.
            types.FunctionType(_run.__code__.replace(), _run.__globals__),
            fullgraph=True,
            dynamic=False,
            backend=self._compile,
        )

    def bind(
        self,
        tensors: list[Tensor],
        sizes: dict[int, tuple[int, int]],
        layer: nn.Module,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> tuple[Code, object]:
        """Run a layer; return two things: a function that runs it on the tensors of later calls,
        and the result of this call.

        `tensors` are the arguments of this call; `sizes` has the tensor and the dimension of each
        size that can change in later calls.
        """
        with torch._dynamo.config.patch(recompile_limit=MAX_KINDS):
            result = self._compiled(layer, *args, **kwargs)
        code, inputs, outputs = self._called.pop()
        places = {id(tensor): place for place, tensor in enumerate(tensors)}
        passed = [(i, places[id(value)]) for i, value in enumerate(inputs) if id(value) in places]
        grown = [
            (i, *sizes[value])
            for i, value in enumerate(inputs)
            if type(value) is int and value in sizes
        ]
        leaves, structure = pytree.tree_flatten(result)
        numbers = {id(output): number for number, output in enumerate(outputs)}
        order = [None if leaf is None else numbers[id(leaf)] for leaf in leaves]
        for i, _ in passed:
            inputs[i] = None

        def run(tensors: list[Tensor]) -> object:
            values = inputs.copy()
            for i, place in passed:
                values[i] = tensors[place]
            for i, place, dimension in grown:
                values[i] = tensors[place].shape[dimension]
            outputs = code(*values)
            return structure.unflatten([None if i is None else outputs[i] for i in order])

        return run, result

    def _compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor | int]) -> Code:
        from torch._inductor.compile_fx import compile_fx  # warns when it is imported

        _merge_linears(graph)
        code: Any = compile_fx(graph, inputs, config_patches=OPTIONS)

        def run(*values: object) -> object:
            outputs = code(*values)
            self._called = [(code, list(values), outputs)]
            return outputs

        return run


def _merge_linears(module: torch.fx.GraphModule) -> None:
    """Replace products with the same input, e.g. queries, keys and values, by one call."""
    if not cpu_kernels.is_loaded():
        return
    graph, ops = module.graph, torch.ops.ulskip
    products: dict[object, list[torch.fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.target in (ops.linear, ops.linear.default):
            products[node.args[0]].append(node)
    for nodes in products.values():
        hidden = nodes[0].args[0]  # the product of an earlier layer was replaced meanwhile
        packed, biases, sizes = ([node.args[i] for node in nodes] for i in (1, 2, 3))
        with graph.inserting_before(nodes[0]):
            merged = graph.call_function(ops.linears.default, (hidden, packed, biases, sizes))
            for i, node in enumerate(nodes):
                node.replace_all_uses_with(graph.call_function(operator.getitem, (merged, i)))
        for node in nodes:
            graph.erase_node(node)
    module.recompile()


_code_by_shape: dict[tuple[int, int], _LayerCode] = {}


def _run(layer: nn.Module, *args: object, **kwargs: object) -> object:
    return layer(*args, **kwargs)


def _cache_compiled_code() -> None:
    """Let torch.compile keep its code in our cache instead of /tmp, so that later processes compile
    in less time.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    default = default_cache_dir()
    if os.environ.get(_COMPILED_CODE, default) == default:  # torch itself sets the variable
        folder = cache_dir() / "compiled"
        with contextlib.suppress(OSError):  # without a writable cache, /tmp remains
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[_COMPILED_CODE] = str(folder)
