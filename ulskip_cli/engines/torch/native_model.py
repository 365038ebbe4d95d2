"""Models whose decode steps are one call of the CPU kernels: Llama, and what is built like it.

`backend_for` returns what the kernels need to run a model and its views, or why they cannot. A
model is recognized by its modules, not by its name: RMS norms, attention with rotary positions, and
a gated MLP with SiLU, with optional biases, norms of queries and keys, and sliding windows. Its
layers, norm and head are then compared with their own forward passes.
"""

from collections.abc import Mapping, Sequence
from ctypes import Array, byref, sizeof
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple
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
    mask_argument,
    step_masks,
    unsupported_by_loop,
)
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.skip_adapter import PatchModule
from ulskip_cli.inference.teacher_forcing import EncodedPrompt

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
UNLIMITED = 2**40  # positions
_COMPARED_PROMPT, _COMPARED_TOKENS = 6, 2
# The largest difference of a layer from its own forward pass: shares of what it changes, and of its
# output, which is rounded.
_ROUNDING_ERROR = {torch.float32: (1e-3, 1e-5), torch.bfloat16: (0.05, 2**-7)}
COPIES_MEMORY_SHARE = 0.25  # limit of the packed copies, as a share of the free memory
# The share of a head's rows that may be computed exactly for a token; with more, bounds do not pay.
_MOST_EXACT = 0.02
_LEAST_TOKENS = 64  # before the share counts


class UnrecognizedError(Exception):
    """The message is the property of a model for which the kernels have no step."""


class ByteHead(NamedTuple):
    """A copy of a head [vocab_size, hidden_size] in 8 bits, with which the kernels see which tokens
    cannot be the most likely. A number for each row is in a tensor [panels * 32].
    """

    weights: Tensor  # [panels, quads, 32, 4], plus 128, as the kernels read unsigned bytes
    scales: Tensor
    error_bounds: Tensor  # of the norm of the row's rounding error
    norm_bounds: Tensor  # of the norm of the rounded row


class ExactRowCounts(NamedTuple):
    """How many rows of the head were computed exactly, because their bounds allowed the largest
    logit.
    """

    tokens: int  # that were chosen with bounds
    exact_rows: int  # for all these tokens


@dataclass(frozen=True, eq=False)
class NativeBackend:
    """The windows and copies of weights with which the kernels run a recognized model and its views
    in one call a step. All views share the copies.
    """

    name: ClassVar = "native"
    reason: ClassVar[None] = None
    # By the first norm of a layer, which views share: the number of latest positions that the layer
    # attends to, UNLIMITED for all.
    windows: Mapping[nn.Module, int]
    weights: Copies[PackedWeight]
    byte_heads: Copies[ByteHead] = field(default_factory=lambda: Copies(make_byte_head))
    four_bit_weights: Copies[PackedWeight] = field(
        default_factory=lambda: Copies(kernels.pack_in_four_bits)
    )

    def step_model(self, view: PreTrainedModel) -> "NativeModel":
        """Return what runs the steps of a view."""
        byte_heads = self.byte_heads if kernels.library().ulskip_has_byte_products() else None
        return NativeModel(view, self.windows, self.weights, byte_heads)

    def draft_model(self, view: PreTrainedModel) -> "NativeModel":
        """Return what runs the steps of a view with all weights in 4 bits."""
        return NativeModel(view, self.windows, self.four_bit_weights)


@dataclass(frozen=True, eq=False)
class PanelBackend:
    """The packed weights of a model, whose linear layers run in the kernels one by one."""

    name: ClassVar = "panels"
    reason: str  # why it is not `NativeBackend`
    weights: Copies[PackedWeight]

    def step_model(self, view: PreTrainedModel) -> PreTrainedModel:
        """Return what runs the steps of a view."""
        return kernels.packed(view, self.weights)


@dataclass(frozen=True)
class PlainBackend:
    """A model without kernels, or in another library, which then has the `name`."""

    reason: str | None = None  # why a CPU has nothing faster
    name: str = "torch"

    def step_model(self, view: PreTrainedModel) -> PreTrainedModel:
        """Return what runs the steps of a view."""
        return view


Backend = NativeBackend | PanelBackend | PlainBackend
# What `backend_for` returned, with the dtypes and devices of the weights at that time.
_backends: WeakKeyDictionary[nn.Module, tuple[object, Backend]] = WeakKeyDictionary()


def backend_for(model: PreTrainedModel) -> Backend:
    """Return what the kernels need to run the decode steps of a model and all of its views, or why
    they cannot.

    Equal calls return one object: the full model and its schedules run alike, also when the free
    memory changes, and share the copies of weights. A model that was moved or cast is recognized
    anew.
    """
    weights = [linear_weight(module) for module in model.modules() if is_linear(module)]
    kinds = frozenset((weight.dtype, weight.device.type) for weight in weights)
    known = _backends.get(model)
    if known is None or known[0] != kinds:
        known = _backends[model] = kinds, _fastest_backend(model, weights)
    return known[1]


def _fastest_backend(model: PreTrainedModel, weights: Sequence[Tensor]) -> Backend:
    """Return the fastest backend for a model whose linear layers have these weights."""
    dtypes = {weight.dtype for weight in weights}
    if any(weight.device.type != "cpu" for weight in weights):
        return PlainBackend()
    if len(dtypes) != 1 or not dtypes <= set(kernels.DTYPES):
        return PlainBackend("the weights are neither all float32 nor all bfloat16")
    needed = sum(weight.nbytes for weight in weights)
    if needed > COPIES_MEMORY_SHARE * psutil.virtual_memory().available:
        return PlainBackend(
            f"packed weights need {needed} bytes, more than {COPIES_MEMORY_SHARE:.0%} of the free"
            " memory"
        )
    # The kernels read two adjacent bfloat16 values at once.
    if torch.bfloat16 in dtypes and any(weight.shape[1] % 2 for weight in weights):
        return PlainBackend("a bfloat16 layer has an odd number of inputs")
    if failure := kernels.load_kernels():
        return PlainBackend(failure)
    copies = Copies(kernels.pack)
    try:
        return _native_backend(model, copies)
    except UnrecognizedError as error:
        return PanelBackend(str(error), copies)


class NativeModel:
    """A recognized model, or a view of one, whose layers, norm and head run in the kernels."""

    def __init__(
        self,
        view: PreTrainedModel,
        windows: Mapping[nn.Module, int],
        weights: Copies[PackedWeight],
        byte_heads: Copies[ByteHead] | None = None,
    ) -> None:
        """Pack the weights that no other view has packed; raise UnrecognizedError if a module is of
        another kind. The parameters are those of `NativeBackend`; without `byte_heads`, tokens
        are chosen by the whole head.
        """
        decoder, layers = _decoder_and_layers(view)
        head, embedding = view.get_output_embeddings(), view.get_input_embeddings()
        self.dtype, self._windows, self._weights = view.dtype, windows, weights
        self._rotary = decoder.rotary_emb
        self._tensors = list[Tensor]()  # those that structures point to
        self._layers = [self._layer(layer) for layer in layers]
        hidden = embedding.weight.shape[1]
        self._model = kernels.Model(
            hidden=hidden,
            vocab=head.weight.shape[0],
            embedding=self._at(embedding.weight),
            norm=self._norm(decoder.norm, hidden),
            head=self._linear(head),
        )
        # cosines and sines, [2, capacity, head_dim]
        self._rotations = torch.empty(2, 0, 0)
        self._num_bounded = 0
        self._exact_rows = torch.zeros(1, dtype=torch.long)  # the kernels add to it
        if byte_heads:
            self._use_byte_head(byte_heads.of(head), head)

    @property
    def exact_row_counts(self) -> ExactRowCounts:
        """How many rows were computed exactly so far."""
        return ExactRowCounts(self._num_bounded, int(self._exact_rows))

    @property
    def vocab_size(self) -> int:
        """The number of logits."""
        return int(self._model.vocab)

    def bind(self, cache: DynamicCache) -> "Array[kernels.Layer]":
        """Return the layers with the keys and values of a batch, whose cache has preallocated
        buffers [batch, heads, capacity, head_dim]. The structures do not keep buffers alive.
        """
        self._make_rotations(cache.layers[0].keys.shape[2])
        bound = (kernels.Layer * len(self._layers))(*self._layers)
        for layer, buffers in zip(bound, cache.layers, strict=True):
            layer.keys, layer.values = buffers.keys.data_ptr(), buffers.values.data_ptr()
            if layer.cos is not None:
                layer.cos, layer.sin = (part.data_ptr() for part in self._rotations)
        return bound

    def run(
        self,
        layers: "Array[kernels.Layer] | None",
        batch: kernels.Batch,
        tokens: Tensor | None = None,
        states: Tensor | None = None,
        logits: Tensor | None = None,
        chosen: kernels.ChosenTokens | None = None,
    ) -> None:
        """Run layers (None: none) for the new tokens of a batch, and write into the tensors that
        are given. All are contiguous.

        `tokens` [batch, count] are embedded; without them, `states` [batch, count, hidden_size] are
        the inputs of the first layer. Given `states` also get the outputs of the last layer. Norm
        and head run only to fill `logits` [batch, count, vocab_size], float32, or for `chosen`,
        which gets the most likely tokens without logits.
        """
        kernels.library().ulskip_step(
            byref(self._model),
            layers,
            len(layers or ()),
            byref(batch),
            *(None if held is None else held.data_ptr() for held in (tokens, states, logits)),
            None if chosen is None else byref(chosen),
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
        buffers = list[Tensor]()
        for layer in self._layers:
            heads = layer.key.outputs // layer.head_dim
            keys = torch.empty(batch, heads, length, layer.head_dim, dtype=self.dtype)
            buffers += [keys, torch.empty_like(keys)]
        cache = kv_cache.filled_cache(buffers)
        padding = (mask == 0).sum(dim=1).int()
        prompts = kernels.Batch(
            size=batch, count=length, capacity=length, padding=padding.data_ptr()
        )
        states = self.empty_states(batch, length)
        self.run(self.bind(cache), prompts, ids.contiguous(), states)
        last = states[:, -1:].contiguous()
        logits = torch.empty(batch, 1, self.vocab_size)
        self.run(None, kernels.Batch(size=batch, count=1), states=last, logits=logits)
        return EncodedPrompt(logits, cache, mask)

    def choose(
        self, layers: "Array[kernels.Layer]", batch: kernels.Batch, tokens: Tensor, banned: Tensor
    ) -> Tensor:
        """Return the most likely token [batch, count] after each of `tokens` [batch, count], -1
        where no logit is finite; tokens in `banned` are not chosen. If too many rows of
        the head have to be computed exactly, this model uses no bounds any more.
        """
        next_tokens = torch.empty_like(tokens)
        chosen = kernels.ChosenTokens(
            next_tokens.data_ptr(), banned.data_ptr(), len(banned), self._exact_rows.data_ptr()
        )
        self.run(layers, batch, tokens, chosen=chosen)
        if self._model.byte_head is not None:
            self._num_bounded += tokens.numel()
            limit = _MOST_EXACT * self.vocab_size * self._num_bounded
            if self._num_bounded >= _LEAST_TOKENS and int(self._exact_rows) > limit:
                self._model.byte_head = None
        return next_tokens

    def _at(self, tensor: Tensor) -> int:
        """Return the address of a tensor for a structure, and keep the tensor alive; refuse it if
        the kernels cannot read its layout or type.
        """
        _require(tensor.is_contiguous() and tensor.dtype == self.dtype, tensor)
        self._tensors.append(tensor)
        return tensor.data_ptr()

    def _norm(self, norm: Any, width: int) -> kernels.Norm:
        """Return the structure of an RMS norm over `width` values; that of None has no weight and
        does nothing. Refuse other modules.
        """
        if norm is None:
            return kernels.Norm()
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
        """Return the structure of a gap patch; that of None has no weight and does nothing."""
        if patch is None:
            return kernels.Linear()
        _require(isinstance(patch, PatchModule), patch)
        return self._linear(patch.linear)

    def _layer(self, layer: Any) -> kernels.Layer:
        """Return the structure of a decoder layer without a KV cache, which `bind` adds."""
        attention, mlp = layer.self_attn, layer.mlp
        width = attention.head_dim
        hidden = mlp.up_proj.weight.shape[1]
        rotates = getattr(attention, "use_rope", True)
        return kernels.Layer(
            attention_norm=self._norm(layer.input_layernorm, hidden),
            mlp_norm=self._norm(layer.post_attention_layernorm, hidden),
            query_norm=self._norm(getattr(attention, "q_norm", None), width),
            key_norm=self._norm(getattr(attention, "k_norm", None), width),
            query=self._linear(attention.q_proj),
            key=self._linear(attention.k_proj),
            value=self._linear(attention.v_proj),
            out=self._linear(attention.o_proj),
            gate=self._linear(mlp.gate_proj),
            up=self._linear(mlp.up_proj),
            down=self._linear(mlp.down_proj),
            before=self._patch(getattr(layer, "patch_before", None)),
            after=self._patch(getattr(layer, "patch_after", None)),
            cos=1 if rotates else None,  # `bind` replaces the 1 by an address
            head_dim=width,
            window=self._windows[layer.input_layernorm],
            scale=attention.scaling,
        )

    def _make_rotations(self, capacity: int) -> None:
        """Make the cosines and sines of `capacity` positions, if there are fewer; refuse a model
        that rotates only a part of each head.
        """
        if self._rotations.shape[1] >= capacity:
            return
        positions = torch.arange(capacity)[None]
        cos_and_sin = self._rotary(torch.zeros(1, 1, 1, dtype=self.dtype), positions)
        self._rotations = torch.stack([part[0].to(self.dtype) for part in cos_and_sin])
        widths = {layer.head_dim for layer in self._layers if layer.cos is not None}
        _require(widths <= {self._rotations.shape[2]}, self._rotary)

    def _use_byte_head(self, byte_head: ByteHead, head: nn.Module) -> None:
        """Choose tokens by bounds, and by exact logits of the rows whose bounds allow it."""
        self._tensors += byte_head
        model = self._model
        model.byte_head, model.quads = byte_head.weights.data_ptr(), byte_head.weights.shape[1]
        model.byte_scales = byte_head.scales.data_ptr()
        model.error_bounds = byte_head.error_bounds.data_ptr()
        model.norm_bounds = byte_head.norm_bounds.data_ptr()
        model.head_rows = self._at(linear_weight(head).detach())


def one_layer(layers: "Array[kernels.Layer]", index: int) -> "Array[kernels.Layer]":
    """Return an array of one of several layers, in the same memory."""
    return (kernels.Layer * 1).from_buffer(layers, index * sizeof(kernels.Layer))


def make_byte_head(weight: Tensor) -> ByteHead:
    """Return the copy in 8 bits of a head [vocab_size, hidden_size], with its bounds."""
    rows = weight.detach()
    peak = rows.abs().amax(dim=1).float()
    scales = torch.where(peak > 0, peak, 1) / 127
    weights = torch.empty(rows.shape, dtype=torch.uint8)
    error_bounds, norm_bounds = torch.empty_like(scales), torch.empty_like(scales)
    # In parts, because double precision needs memory; 1.0001 keeps the bounds above rounding.
    for begin in range(0, len(rows), 8192):
        part = slice(begin, begin + 8192)
        exact, unit = rows[part].double(), scales[part][:, None].double()
        whole = (exact / unit).round().clamp(-127, 127)
        weights[part] = (whole + 128).to(torch.uint8)
        error_bounds[part] = ((exact - whole * unit).norm(dim=1) * 1.0001).float()
        norm_bounds[part] = ((whole * unit).norm(dim=1) * 1.0001).float()
    packed = HUGE_PAGES.copy(kernels.panels(weights, 4))
    missing = packed.shape[0] * kernels.PANEL - len(rows)  # rows that fill the last panel
    return ByteHead(
        packed,
        *(nn.functional.pad(part, (0, missing)) for part in (scales, error_bounds, norm_bounds)),
    )


def _decoder_and_layers(model: PreTrainedModel) -> tuple[Any, nn.ModuleList]:
    """Return the module of a causal LM that has its decoder layers, such as `model.model`, and the
    layers.
    """
    path, layers = shallow_view.layer_stack(model)
    return model.get_submodule(path.rpartition(".")[0]), layers


def _require(is_known: object, part: object) -> None:
    """Raise UnrecognizedError, which names the type of `part`, unless the kernels know it."""
    if not is_known:
        raise UnrecognizedError(f"the kernels have no step for {type(part).__name__}")


def _names(module: object) -> set[str]:
    """Return the names of the direct submodules."""
    return set(module._modules) if isinstance(module, nn.Module) else set()


def _check_modules(model: PreTrainedModel) -> None:
    """Raise UnrecognizedError unless the modules of a model are those that the kernels compute."""
    decoder, layers = _decoder_and_layers(model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    _require(_names(decoder) == {"embed_tokens", "layers", "norm", "rotary_emb"}, decoder)
    _require(_names(model) == {"model", "lm_head"}, model)
    _require(type(embedding) is nn.Embedding and is_linear(head) and head.bias is None, model)
    for layer in layers:
        _require(_names(layer) == _LAYER, layer)
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        _require(_names(attention) - _HEAD_NORMS == _ATTENTION, attention)
        _require(_names(mlp) == {"gate_proj", "up_proj", "down_proj", "act_fn"}, mlp)
        activation = mlp.get_submodule("act_fn")
        _require(type(activation) in (nn.SiLU, ACT2CLS["silu"]), activation)
        # They have no weights of their own, such as a scale, which the kernels would ignore.
        for module in (layer, attention, mlp):
            _require(not [*module.parameters(recurse=False)], module)


@torch.inference_mode()
def _native_backend(model: PreTrainedModel, copies: Copies[PackedWeight]) -> NativeBackend:
    """Return what the kernels need to run a model; raise UnrecognizedError unless they compute what
    it computes.
    """
    _check_modules(model)
    if problem := unsupported_by_loop(model):
        raise UnrecognizedError(problem)
    if shallow_view.depends_on_length(model):
        raise UnrecognizedError(shallow_view.LENGTH_DEPENDENT)
    layerwise = LayerwiseModel(model)
    norms = [layer.get_submodule("input_layernorm") for layer in layerwise.layers]
    windows = zip(norms, _measured_windows(model, layerwise), strict=True)
    recognized = NativeBackend(dict(windows), copies)
    _check_outputs(recognized.step_model(model), model, layerwise)
    return recognized


def _check_outputs(native: NativeModel, model: PreTrainedModel, layerwise: LayerwiseModel) -> None:
    """Raise UnrecognizedError unless the embedding, each layer, and norm and head give the same in
    the kernels as in the model's own modules, which `layerwise` runs: for two tokens after a short
    prompt of two sequences, one of them padded.
    """
    seen, count = _COMPARED_PROMPT, _COMPARED_TOKENS
    ids = torch.arange(1, seen + count + 1).repeat(2, 1) % native.vocab_size
    mask = torch.ones_like(ids[:, :seen])
    mask[0, :2] = 0  # padding
    cache = kv_cache.new_cache(model)
    shallow_view.forward_with_cache(model, ids[:, :seen], mask, cache, last_only=True)
    # Torch and the kernels write the same places of the cache, one after the other.
    cache.layers = [FixedLayer(layer, seen + count, Cursor(seen)) for layer in cache.layers]
    tokens = ids[:, seen:].contiguous()
    options = PositionsAndMasks(model, cache, mask, count).options(seen, count)
    inputs = layerwise.layer_inputs(tokens, cache, **options)
    padding = (mask == 0).sum(1).int()
    batch = kernels.Batch(2, count, seen, seen + count, padding.data_ptr())
    expected, computed = inputs.hidden, torch.empty_like(inputs.hidden)
    native.run(None, batch, tokens, computed)
    if not torch.equal(computed, expected):
        raise UnrecognizedError("the embedding is scaled")
    layers = native.bind(cache)
    for index in range(len(layers)):
        before, computed = expected, expected.clone()
        expected = layerwise.layer(index, before, inputs)
        native.run(one_layer(layers, index), batch, states=computed)
        _check_close(f"layer {index}", computed, expected, expected - before)
    logits = layerwise.logits(expected)
    computed = torch.empty(logits.shape)
    native.run(None, batch, states=expected.clone(), logits=computed)
    _check_close("norm and head", computed, logits, logits)  # they add to nothing


def _check_close(name: str, computed: Tensor, expected: Tensor, added: Tensor) -> None:
    """Raise UnrecognizedError if the output `computed` by the kernels differs from that of the
    model by more than `_ROUNDING_ERROR`; `added` is what the layer `name` adds to its input.
    """
    of_added, of_output = _ROUNDING_ERROR[expected.dtype]
    tolerance = of_added * added.float().norm() + of_output * expected.float().norm()
    error = (computed.float() - expected.float()).norm()
    if not error <= tolerance:  # also if it is NaN
        raise UnrecognizedError(f"{name} computes something else than a Llama")


def _measured_windows(model: PreTrainedModel, layerwise: LayerwiseModel) -> list[int]:
    """Return the number of latest positions that each layer attends to, UNLIMITED for all, as the
    model's own masks of the last two tokens of its context show; refuse masks of other kinds.
    """
    context = getattr(shallow_view.text_config(model), "max_position_embeddings", 4096)
    seen = max(2, context) - 2
    states = torch.empty(1, 1, 1, 1).expand(1, 1, seen, 1)  # without memory; only the length counts
    cache = kv_cache.filled_cache([states, states] * len(layerwise.layers))
    masks = step_masks(model, cache, torch.ones(1, seen, dtype=torch.long), 2)
    places = torch.arange(seen, seen + 2)[None]
    ids = torch.zeros_like(places)
    inputs = layerwise.layer_inputs(
        ids, cache, attention_mask=mask_argument(masks), position_ids=places
    )
    windows = list[int]()
    for _, arguments in inputs.calls:
        mask = arguments.get("attention_mask")  # [1, 1, 2, seen + 2], 0 where a token attends
        if not isinstance(mask, Tensor) or "position_embeddings" not in arguments:
            raise UnrecognizedError("its layers are called in another way than those of a Llama")
        windows.append(_window_of(mask[0, 0] == 0))
    return windows


def _window_of(attends: Tensor) -> int:
    """Return the number of latest positions that the last two tokens of a context see, where
    `attends` [2, positions], UNLIMITED for all; refuse masks that do not move with the token.
    """
    first, last = attends
    window = int(last.sum())
    is_full = window == len(last)
    expected = window - 1 if is_full else window  # of the first token
    if not last[-window:].all() or int(first.sum()) != expected:
        raise UnrecognizedError("its masks are not those of a sliding window")
    return UNLIMITED if is_full else window
