"""Models whose decode steps are one call of the CPU kernels: Llama, and what is built like it.

`recognize` returns what the kernels need to run a model and its views, or why they cannot. A model
is recognized by its modules, not by its name: RMS norms, attention with rotary positions, and a
gated MLP with SiLU, with optional biases, norms of queries and keys, and sliding windows. Its
layers, norm and head are then compared with their own forward passes.
"""

from collections.abc import Mapping, Sequence
from ctypes import Array, byref, sizeof
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.activations import ACT2CLS

from ulskip_cli.engines.torch import kernels
from ulskip_cli.engines.torch.kernels import (
    HUGE_PAGES,
    Copies,
    PackedWeight,
    is_linear,
    linear_weight,
)
from ulskip_cli.engines.torch.static_cache import (
    Cursor,
    FixedLayer,
    PositionsAndMasks,
    step_masks,
    unsupported_by_loop,
)
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.skip_adapter import GapPatch
from ulskip_cli.inference.teacher_forcing import EncodedPrompt

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = ("q_norm", "k_norm")
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PATCHES = ("patch_before", "patch_after")
UNLIMITED = 2**40  # positions
_COMPARED_PROMPT, _COMPARED_TOKENS = 6, 2
# The largest difference of a layer from its own forward pass: shares of what it changes, and of its
# output, which is rounded.
_ROUNDING_ERROR = {torch.float32: (1e-3, 1e-5), torch.bfloat16: (0.05, 2**-7)}
COPIES_MEMORY_SHARE = 0.25  # limit of the packed copies, as a share of the free memory
# Head rows that may be left to compute exactly, as a share of all; then the whole head costs less.
_MOST_LEFT = 0.02
_COUNTED = 64  # positions before the share counts


class UnrecognizedError(Exception):
    """The message is the property of a model for which the kernels have no step."""


@dataclass(frozen=True, eq=False)
class Native:
    """The windows and copies of weights with which the kernels run a recognized model and its views
    in one call a step. All views share the copies.
    """

    name: ClassVar = "native"
    reason: ClassVar[None] = None
    # By the first norm of a layer, which views share: the number of latest positions that the layer
    # attends to, UNLIMITED for all.
    windows: Mapping[nn.Module, int]
    weights: Copies[PackedWeight]
    # 8-bit copies of the head, with which the kernels see which tokens cannot be the most likely
    screens: Copies[list[Tensor]] = field(default_factory=lambda: Copies(screen_tensors))
    # copies in 4 bits, which draft
    small_weights: Copies[PackedWeight] = field(
        default_factory=lambda: Copies(kernels.pack_in_four_bits)
    )

    def step_model(self, view: PreTrainedModel) -> "NativeModel":
        """Return what runs the steps of a view."""
        screens = self.screens if kernels.library().ulskip_screens() else None
        return NativeModel(view, self.windows, self.weights, screens)

    def draft_model(self, view: PreTrainedModel) -> "NativeModel":
        """Return what runs the steps of a view with all weights in 4 bits."""
        return NativeModel(view, self.windows, self.small_weights)


@dataclass(frozen=True, eq=False)
class Panels:
    """The packed weights of a model, whose linear layers run in the kernels one by one."""

    name: ClassVar = "panels"
    reason: str  # why it is not `Native`
    weights: Copies[PackedWeight]

    def step_model(self, view: PreTrainedModel) -> PreTrainedModel:
        """Return what runs the steps of a view."""
        return kernels.packed(view, self.weights)


@dataclass(frozen=True)
class Plain:
    """A model without kernels, or in another library, which then has the `name`."""

    reason: str | None = None  # why a CPU has nothing faster
    name: str = "torch"

    def step_model(self, view: PreTrainedModel) -> PreTrainedModel:
        """Return what runs the steps of a view."""
        return view


Backend = Native | Panels | Plain
# What `recognize` returned, with the dtypes and devices of the weights at that time.
_recognized: WeakKeyDictionary[nn.Module, tuple[object, Backend]] = WeakKeyDictionary()


def recognize(model: PreTrainedModel) -> Backend:
    """Return what the kernels need to run the decode steps of a model and all of its views, or why
    they cannot.

    Equal calls return one object: the full model and its schedules run alike, also when the free
    memory changes, and share the copies of weights. A model that was moved or cast is recognized
    anew.
    """
    weights = [linear_weight(module) for module in model.modules() if is_linear(module)]
    kinds = frozenset((weight.dtype, weight.device.type) for weight in weights)
    known = _recognized.get(model)
    if known is None or known[0] != kinds:
        known = _recognized[model] = kinds, _recognize(model, weights)
    return known[1]


def _recognize(model: PreTrainedModel, weights: Sequence[Tensor]) -> Backend:
    """Return the fastest backend for a model whose linear layers have these weights."""
    dtypes = {weight.dtype for weight in weights}
    if any(weight.device.type != "cpu" for weight in weights):
        return Plain()
    if len(dtypes) != 1 or not dtypes <= set(kernels.DTYPES):
        return Plain("the weights are neither all float32 nor all bfloat16")
    needed = sum(weight.nbytes for weight in weights)
    if needed > COPIES_MEMORY_SHARE * psutil.virtual_memory().available:
        return Plain(
            f"packed weights need {needed} bytes, more than {COPIES_MEMORY_SHARE:.0%} of the free"
            " memory"
        )
    # The kernels read two adjacent bfloat16 values at once.
    if torch.bfloat16 in dtypes and any(weight.shape[1] % 2 for weight in weights):
        return Plain("a bfloat16 layer has an odd number of inputs")
    if failure := kernels.load_kernels():
        return Plain(failure)
    copies = Copies(kernels.pack)
    try:
        return _compared(model, copies)
    except UnrecognizedError as error:
        return Panels(str(error), copies)


class NativeModel:
    """A recognized model, or a view of one, whose layers, norm and head run in the kernels."""

    def __init__(
        self,
        view: PreTrainedModel,
        windows: Mapping[nn.Module, int],
        weights: Copies[PackedWeight],
        screens: Copies[list[Tensor]] | None = None,
    ) -> None:
        """Pack the weights that no other view has packed; raise UnrecognizedError if a module is of
        another kind. The parameters are those of `Native`; without `screens`, choices compute the
        whole head.
        """
        path, stack = shallow_view.layer_stack(view)
        base = view.get_submodule(path.rpartition(".")[0])
        head, embedding = view.get_output_embeddings(), view.get_input_embeddings()
        self.dtype, self._windows, self._weights = view.dtype, windows, weights
        self._rotary = base.rotary_emb
        self._tensors = list[Tensor]()  # those that structures point to
        self._layers = [self._layer(layer) for layer in stack]
        hidden = embedding.weight.shape[1]
        self._model = kernels.Model(
            hidden=hidden,
            vocab=head.weight.shape[0],
            embedding=self._at(embedding.weight),
            norm=self._norm(base.norm, hidden),
            head=self._linear(head),
        )
        self._positions = torch.empty(0)  # cosines and sines, [2, capacity, head_dim]; see `_reach`
        # Counts: the rows of the head that screens left, and the choices that screens made.
        self._left, self._screened = torch.zeros(1, dtype=torch.long), 0
        if screens:
            self._screen(head, screens.of(head))

    @property
    def screens(self) -> tuple[int, int]:
        """The number of choices by screens so far, and of the rows of the head that they left."""
        return self._screened, int(self._left)

    @property
    def vocab_size(self) -> int:
        """The number of logits."""
        return int(self._model.vocab)

    def bind(self, cache: DynamicCache) -> "Array[kernels.Layer]":
        """Return the layers with the keys and values of a batch, whose cache has preallocated
        buffers [batch, heads, capacity, head_dim]. The structures do not keep buffers alive.
        """
        self._reach(cache.layers[0].keys.shape[2])
        bound = (kernels.Layer * len(self._layers))(*self._layers)
        for layer, held in zip(bound, cache.layers, strict=True):
            layer.keys, layer.values = held.keys.data_ptr(), held.values.data_ptr()
            if layer.cos is not None:
                layer.cos, layer.sin = (part.data_ptr() for part in self._positions)
        return bound

    def run(
        self,
        layers: "Array[kernels.Layer] | None",
        batch: kernels.Batch,
        tokens: Tensor | None = None,
        states: Tensor | None = None,
        logits: Tensor | None = None,
        choice: kernels.Choice | None = None,
    ) -> None:
        """Run layers (None: none) for the new tokens of a batch, and write what is asked for.

        `tokens` [batch, count] are embedded; without them, `states` [batch, count, hidden_size] are
        the inputs of the first layer. If `states` are given, the outputs of the last layer are
        written to them. Norm and head run for `logits` [batch, count, vocab_size], float32, and for
        a `choice`, whose tokens are written. All tensors are contiguous.
        """
        kernels.library().ulskip_step(
            byref(self._model),
            layers,
            len(layers or ()),
            byref(batch),
            *(None if held is None else held.data_ptr() for held in (tokens, states, logits)),
            None if choice is None else byref(choice),
            self.dtype == torch.float32,
            torch.get_num_threads(),
        )

    def empty_states(self, batch: int, count: int) -> Tensor:
        """Return memory for states [batch, count, hidden_size]."""
        return torch.empty(batch, count, self._model.hidden, dtype=self.dtype)

    @property
    def slides(self) -> bool:
        """True if some layers see only a window of the text."""
        return any(layer.window < UNLIMITED for layer in self._layers)

    def encode(self, ids: Tensor, mask: Tensor) -> EncodedPrompt:
        """Read prompts [batch, prompt_len], padded on the left where `mask` is 0, with a model that
        does not slide. The kernels fill the new cache, and the last states pass norm and head.
        """
        batch, length = ids.shape
        shapes = [
            (batch, layer.key.outputs // layer.head_dim, length, layer.head_dim)
            for layer in self._layers
        ]
        cache = kv_cache.filled_cache(
            [torch.empty(shape, dtype=self.dtype) for shape in shapes for _ in ("keys", "values")]
        )
        padding = (mask == 0).sum(dim=1).int()
        prompts = kernels.Batch(batch, length, 0, length, padding.data_ptr())
        states = self.empty_states(batch, length)
        self.run(self.bind(cache), prompts, ids.contiguous(), states)
        last = states[:, -1:].contiguous()
        logits = torch.empty(batch, 1, self.vocab_size)
        self.run(None, kernels.Batch(batch, 1), states=last, logits=logits)
        return EncodedPrompt(logits, cache, mask)

    def choose(
        self, layers: "Array[kernels.Layer]", batch: kernels.Batch, tokens: Tensor, banned: Tensor
    ) -> Tensor:
        """Return the most likely token [batch, count] after each of `tokens` [batch, count], -1
        where no logit is finite; tokens in `banned` are not chosen. If the screen leaves too many
        rows of the head (`_MOST_LEFT`), this model does not use it any more.
        """
        chosen = torch.empty_like(tokens)
        choice = kernels.Choice(
            chosen.data_ptr(), banned.data_ptr(), len(banned), self._left.data_ptr()
        )
        self.run(layers, batch, tokens, choice=choice)
        if self._model.screen is not None:
            self._screened += tokens.numel()
            most = _MOST_LEFT * self.vocab_size * self._screened
            if self._screened >= _COUNTED and int(self._left) > most:
                self._model.screen = None
        return chosen

    def _at(self, tensor: Tensor) -> int:
        """Return the address of a tensor for a structure, and keep the tensor alive; refuse it if
        the kernels cannot read its layout or type.
        """
        _require(tensor.is_contiguous() and tensor.dtype == self.dtype, tensor)
        self._tensors.append(tensor)
        return tensor.data_ptr()

    def _norm(self, norm: Any, width: int) -> kernels.Norm:
        """Return the structure of an RMS norm over `width` values; refuse other modules."""
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        _require([*dict(norm.named_parameters())] == ["weight"] and eps is not None, norm)
        _require(norm.weight.shape == (width,), norm)
        return kernels.Norm(self._at(norm.weight.detach()), eps)

    def _linear(self, linear: Any) -> kernels.Linear:
        """Return the structure of a linear layer with its packed weight; refuse other modules."""
        _require(is_linear(linear), linear)
        weight = self._weights.of(linear)
        self._tensors.append(weight.panels)
        if linear.bias is not None:
            self._at(linear.bias.detach())
        return weight.linear(linear.bias)

    def _patch(self, patch: Any) -> kernels.Linear:
        """Return the structure of a gap patch; that of None has no weights and does nothing."""
        if patch is None:
            return kernels.Linear()
        _require(isinstance(patch, GapPatch), patch)
        return self._linear(patch.linear)

    def _layer(self, layer: Any) -> kernels.Layer:
        """Return the structure of a decoder layer without a KV cache, which `bind` adds."""
        attention, mlp = layer.self_attn, layer.mlp
        width = attention.head_dim
        hidden = mlp.up_proj.weight.shape[1]
        norms = [
            self._norm(getattr(attention, name), width)
            if hasattr(attention, name)
            else kernels.Norm()
            for name in _HEAD_NORMS
        ]
        rotates = getattr(attention, "use_rope", True)
        return kernels.Layer(
            self._norm(layer.input_layernorm, hidden),
            self._norm(layer.post_attention_layernorm, hidden),
            *norms,
            *(self._linear(getattr(attention, f"{name}_proj")) for name in "qkvo"),
            *(self._linear(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down")),
            *(self._patch(getattr(layer, name, None)) for name in _PATCHES),
            cos=1 if rotates else None,  # `bind` replaces the 1 by an address
            head_dim=width,
            window=self._windows[layer.input_layernorm],
            scale=attention.scaling,
        )

    def _reach(self, capacity: int) -> None:
        """Make the cosines and sines of `capacity` positions, if there are fewer; refuse a model
        that rotates only a part of each head.
        """
        if self._positions.numel() and self._positions.shape[1] >= capacity:
            return
        places = torch.arange(capacity)[None]
        parts = self._rotary(torch.zeros(1, 1, 1, dtype=self.dtype), places)
        self._positions = torch.stack([part[0].to(self.dtype) for part in parts])
        widths = {layer.head_dim for layer in self._layers if layer.cos is not None}
        _require(widths <= {self._positions.shape[2]}, self._rotary)

    def _screen(self, head: nn.Module, screen: Sequence[Tensor]) -> None:
        """Let choices use the copy of the head in 8 bits."""
        bits, *floats = screen
        self._tensors += screen
        self._model.rows = self._at(linear_weight(head).detach())
        self._model.screen, self._model.quads = bits.data_ptr(), bits.shape[1]
        for name, values in zip(("scale", "error", "size"), floats, strict=True):
            setattr(self._model, name, values.data_ptr())


def one_layer(layers: "Array[kernels.Layer]", index: int) -> "Array[kernels.Layer]":
    """Return an array of one of several layers, in the same memory."""
    return (kernels.Layer * 1).from_buffer(layers, index * sizeof(kernels.Layer))


def screen_tensors(weight: Tensor) -> list[Tensor]:
    """Return the 8-bit copy of a head [vocab_size, hidden_size] in panels [panels, quads, 32, 4],
    with 128 added as the kernels read unsigned bytes, and three tensors [panels * 32] with a number
    for each row: its scale, a bound of the norm of its error, and a bound of its norm.
    """
    rows = weight.detach()
    peak = rows.abs().amax(dim=1).float()
    scale = torch.where(peak > 0, peak, 1) / 127
    bits = torch.empty(rows.shape, dtype=torch.uint8)
    error, size = torch.empty_like(scale), torch.empty_like(scale)
    # In parts, because double precision needs memory; 1.0001 keeps the bounds above rounding.
    for begin in range(0, len(rows), 8192):
        part = slice(begin, begin + 8192)
        exact, unit = rows[part].double(), scale[part][:, None].double()
        whole = (exact / unit).round().clamp(-127, 127)
        bits[part] = (whole + 128).to(torch.uint8)
        error[part] = ((exact - whole * unit).norm(dim=1) * 1.0001).float()
        size[part] = ((whole * unit).norm(dim=1) * 1.0001).float()
    packed = HUGE_PAGES.copy(kernels.panels(bits, 4))
    missing = packed.shape[0] * kernels.PANEL - len(rows)  # rows that fill the last panel
    return [packed, *(nn.functional.pad(part, (0, missing)) for part in (scale, error, size))]


def _require(is_known: object, part: object) -> None:
    """Raise UnrecognizedError, which names the type of `part`, unless the kernels know it."""
    if not is_known:
        raise UnrecognizedError(f"the kernels have no step for {type(part).__name__}")


def _names(module: object) -> set[str]:
    """Return the names of the direct submodules."""
    return set(module._modules) if isinstance(module, nn.Module) else set()


def _check_modules(model: PreTrainedModel) -> None:
    """Raise UnrecognizedError unless the modules of a model are those that the kernels compute."""
    path, stack = shallow_view.layer_stack(model)
    base = model.get_submodule(path.rpartition(".")[0])
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    _require(_names(base) == {"embed_tokens", "layers", "norm", "rotary_emb"}, base)
    _require(_names(model) == {"model", "lm_head"}, model)
    _require(type(embedding) is nn.Embedding and is_linear(head) and head.bias is None, model)
    for layer in stack:
        _require(_names(layer) == _LAYER, layer)
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        _require(_names(attention) - {*_HEAD_NORMS} == _ATTENTION, attention)
        _require(_names(mlp) == {"gate_proj", "up_proj", "down_proj", "act_fn"}, mlp)
        activation = mlp.get_submodule("act_fn")
        _require(type(activation) in (nn.SiLU, ACT2CLS["silu"]), activation)
        # They have no weights of their own, such as a scale, which the kernels would ignore.
        for module in (layer, attention, mlp):
            _require(not [*module.parameters(recurse=False)], module)


@torch.inference_mode()
def _compared(model: PreTrainedModel, copies: Copies[PackedWeight]) -> Native:
    """Return what the kernels need to run a model. Raise UnrecognizedError unless each layer of the
    model, its embedding, and its norm and head give the same in the kernels as in their own forward
    passes: for two tokens after a short prompt of two sequences, one of them padded.
    """
    _check_modules(model)
    if problem := unsupported_by_loop(model):
        raise UnrecognizedError(problem)
    if shallow_view.depends_on_length(model):
        raise UnrecognizedError(shallow_view.LENGTH_DEPENDENT)
    layerwise = LayerwiseModel(model)
    norms = [layer.get_submodule("input_layernorm") for layer in layerwise.layers]
    windows = zip(norms, _measured_windows(model, layerwise), strict=True)
    recognized = Native(dict(windows), copies)
    native, count = recognized.step_model(model), _COMPARED_TOKENS
    ids = torch.arange(1, _COMPARED_PROMPT + count + 1).repeat(2, 1) % native.vocab_size
    mask = torch.ones_like(ids[:, :_COMPARED_PROMPT])
    mask[0, :2] = 0  # padding
    cache = kv_cache.new_cache(model)
    shallow_view.forward_with_cache(model, ids[:, :_COMPARED_PROMPT], mask, cache, last_only=True)
    cursor = Cursor(_COMPARED_PROMPT)
    cache.layers = [FixedLayer(layer, ids.shape[1], cursor) for layer in cache.layers]
    positions = PositionsAndMasks(model, cache, mask, count)
    tokens = ids[:, _COMPARED_PROMPT:]
    inputs = layerwise.enter(tokens, cache, **positions.options(_COMPARED_PROMPT, count))
    padding = (mask == 0).sum(1).int()
    batch = kernels.Batch(2, count, _COMPARED_PROMPT, ids.shape[1], padding.data_ptr())
    # Torch and the kernels write the same places of the cache, one after the other.
    before, states = inputs.hidden, torch.empty_like(inputs.hidden)
    native.run(None, batch, tokens.contiguous(), states)
    if not torch.equal(states, before):
        raise UnrecognizedError("the embedding is scaled")
    layers = native.bind(cache)
    for index in range(len(layers)):
        after, states = layerwise.layer(index, before, inputs), before.clone()
        native.run(one_layer(layers, index), batch, states=states)
        _check_close(f"layer {index}", states, after, (after - before).float())
        before = after
    wanted = layerwise.logits(before)
    logits = torch.empty(wanted.shape)
    native.run(None, batch, states=before.clone(), logits=logits)
    _check_close("norm and head", logits, wanted, wanted.float())
    return recognized


def _check_close(name: str, got: Tensor, wanted: Tensor, changed: Tensor) -> None:
    """Raise UnrecognizedError if the result of the kernels differs from that of the model by more
    than `_ROUNDING_ERROR`; `changed` is what the layer `name` adds to its input, and for norm and
    head, which add nothing, the whole output.
    """
    of_change, of_value = _ROUNDING_ERROR[wanted.dtype]
    error = (got.float() - wanted.float()).norm()
    # `not <=` also refuses NaN
    if not error <= of_change * changed.norm() + of_value * wanted.float().norm():
        raise UnrecognizedError(f"{name} computes something else than a Llama")


def _measured_windows(model: PreTrainedModel, layerwise: LayerwiseModel) -> list[int]:
    """Return the number of latest positions that each layer attends to, as the model's own masks
    show in its whole context, UNLIMITED for all; refuse masks of other kinds. The masks of the last
    two tokens show whether a window moves with the token.
    """
    context = getattr(shallow_view.text_config(model), "max_position_embeddings", 4096)
    seen = max(2, context) - 2
    states = torch.empty(1, 1, 1, 1).expand(1, 1, seen, 1)  # without memory; only the length counts
    cache = kv_cache.filled_cache([states, states] * len(layerwise.layers))
    masks = step_masks(model, cache, torch.ones(1, seen, dtype=torch.long), 2)
    mask = masks.get("", masks)
    places = torch.arange(seen, seen + 2)[None]
    inputs = layerwise.enter(places * 0, cache, attention_mask=mask, position_ids=places)
    windows = list[int]()
    for _, options in inputs.calls:
        additive: Any = options.get("attention_mask")  # [1, 1, 2, seen + 2], 0 where it attends
        if not isinstance(additive, Tensor) or "position_embeddings" not in options:
            raise UnrecognizedError("its layers are called in another way than those of a Llama")
        first, last = additive[0, 0] == 0
        window = int(last.sum())
        is_full = window == seen + 2
        if not last[-window:].all() or int(first.sum()) != (seen + 1 if is_full else window):
            raise UnrecognizedError("its masks are not those of a sliding window")
        windows.append(UNLIMITED if is_full else window)
    return windows
