"""A model of any architecture, split into the part before the layers, the layers, and the part
after them.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.batching import padded
from ulskip_cli.inference.float32_products import float32_products
from ulskip_cli.inference.teacher_forcing import EncodedPrompt

Arguments = tuple[Sequence[object], dict[str, object]]


@dataclass(frozen=True)
class LayerInputs:
    """The inputs of all layers in one forward pass."""

    hidden: Tensor  # [batch, count, hidden_size], the input of the first layer
    # further arguments of every layer: masks, position embeddings, the cache
    calls: Sequence[Arguments]


class LayerwiseModel:
    """A causal LM or view whose layers run one by one; the model is not changed and must stay on
    its device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = shallow_view.decoder_layers(model)
        self._calls = list[Arguments]()  # of the layers, in the forward pass that `_record` sees
        self._state: Tensor | None = None  # returned in place of each layer's output (`_by_model`)
        # The probe must not change the random numbers of training.
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            # True if layers return tuples; the modules behind the layers, or none
            self._in_tuples, self._chain = _probe(model)
            # The model with layers that record their inputs, or return a given state.
            stand_ins = {layer: _Recorder(layer, self._record) for layer in self.layers}
            self._shell = shallow_view.substituted(model, stand_ins)

    def layer_inputs(
        self, input_ids: Tensor, cache: DynamicCache, **options: object
    ) -> LayerInputs:
        """Return the inputs of the layers for `input_ids` [batch, count], without running a layer:
        recorders in their places collect the arguments, and the last one ends the pass by an
        exception. Only the length of `cache` is read.
        """
        self._calls = []
        try:
            self._shell(input_ids=input_ids, cache=cache, use_cache=True, **options)
        except _LastLayerReached as reached:
            return LayerInputs(reached.args[0], self._calls)
        raise AssertionError("expected a forward pass that reaches the last layer")

    def layer_inputs_after(
        self,
        prompt: EncodedPrompt,
        ids: Tensor,
        ids_mask: Tensor | None = None,
        kept: Sequence[int] | None = None,
    ) -> LayerInputs:
        """Return the inputs of the layers for `ids` [batch, count], which continue `prompt`; the
        layers write into a copy of its cache.

        `ids_mask` [batch, count or more] is 0 at padding (`EncodedPrompt.whole_mask`). `kept` are
        the layers of the prompt's cache that this model has; None means all.
        """
        has_states = prompt.mask.shape[1] > 0  # not after an empty prompt
        if has_states and kv_cache.is_recurrent(prompt.cache):
            raise UsageError(
                "patches, adapters and trained exits do not support models with recurrent layers,"
                " whose states continue token by token; use correction=none"
            )
        layers = range(len(self.layers)) if kept is None else kept
        options = shallow_view.mask_and_positions(
            self._shell, prompt.whole_mask(ids, ids_mask), ids.shape[1]
        )
        return self.layer_inputs(ids, kv_cache.fork_cache(prompt.cache, layers), **options)

    def states(self, inputs: LayerInputs) -> Iterator[Tensor]:
        """Yield the hidden states [batch, count, hidden_size] in front of the first layer, and
        behind each layer when it has run.
        """
        hidden = inputs.hidden
        yield hidden
        for index in range(len(self.layers)):
            hidden = self.layer(index, hidden, inputs)
            yield hidden

    def layer(self, index: int, hidden: Tensor, inputs: LayerInputs) -> Tensor:
        """Run one layer on `hidden` [batch, count, hidden_size] with the arguments in `inputs`;
        return the same shape.
        """
        args, options = inputs.calls[index]
        with float32_products(self._shell, hidden.shape[1]):
            output = self.layers[index](hidden, *args, **options)
        states: Tensor = output[0] if self._in_tuples else output
        return states

    def fill(self, inputs: LayerInputs, count: int) -> None:
        """Run the first `count` layers. Each later layer only adds keys and values to the cache,
        of the state behind layer `count` - 1, and is stopped when it has done so.
        """
        *_, hidden = islice(self.states(inputs), count + 1)
        for layer, (args, options) in zip(self.layers[count:], inputs.calls[count:], strict=True):
            given = {name: _stopping_cache(value) for name, value in options.items()}
            with suppress(_KeysWritten), float32_products(self._shell, hidden.shape[1]):
                _without_queries(layer)(hidden, *map(_stopping_cache, args), **given)

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply final norm and output head: [batch, count, hidden_size] to [batch, count,
        vocab_size]. If the model does more, such as scaling, its own forward does that.
        """
        if not self._chain:
            return self._by_model(hidden)
        for module in self._chain:
            hidden = module(hidden)
        return hidden

    def _by_model(self, hidden: Tensor) -> Tensor:
        """Return logits by the model's own forward, which may scale or cap them. Its layers return
        `hidden`, so its token ids do not matter.
        """
        self._state = hidden
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        try:
            logits: Tensor = self._shell(input_ids=ids, use_cache=False).logits
        finally:
            self._state = None
        return logits

    def _record(self, *args: Any, **options: Any) -> object:
        """Record the arguments of a layer and return its input unchanged; the last layer ends the
        forward pass. If there is a given state, return that instead.
        """
        hidden = self._state
        if hidden is None:
            hidden, *rest = args or (options.pop("hidden_states"),)
            self._calls.append((rest, options))
            if len(self._calls) == len(self.layers):
                raise _LastLayerReached(hidden)
        return (hidden,) if self._in_tuples else hidden


def prompt_model_of(model: PreTrainedModel, prompt_layers: str) -> PreTrainedModel:
    """Return a model that reads prompts as `first:K` says, and `model` itself for other texts.

    All tokens of a prompt but the last pass the first K layers, and the others get their keys and
    values from the state behind layer K - 1. The last token, from which the first token of the
    answer follows, passes all layers as in POP (arXiv:2602.03295). So all decode steps find a full
    cache, and `first:N` of N layers is `all`.
    """
    count = schedule.first_layer_count(prompt_layers)
    if count is None or count >= shallow_view.num_layers(model):
        return model
    source_class: Any = type(model)
    layerwise = LayerwiseModel(model)
    fill = functools.partial(layerwise.fill, count=count)

    class FirstLayers(source_class):  # type: ignore[misc]
        # generate() reads this signature to decide which arguments it passes
        @functools.wraps(source_class.forward)
        def forward(
            self,
            input_ids: Tensor,
            cache: DynamicCache,
            attention_mask: Tensor | None = None,
            **options: object,
        ) -> CausalLMOutputWithPast:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            ids, last = input_ids[:, :-1], input_ids[:, -1:]
            if length := ids.shape[1]:
                fill(
                    layerwise.layer_inputs(
                        ids, cache, **shallow_view.mask_and_positions(model, mask[:, :-1], length)
                    )
                )
            logits = shallow_view.forward_with_cache(model, last, mask, cache)
            return CausalLMOutputWithPast(logits=logits, cache=cache)

    shell = shallow_view.copied(model, {})
    shell.__class__ = FirstLayers
    return shell


@torch.inference_mode()
def state_similarity(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Return the mean over all tokens of cos(h_i, h_j), [num_layers + 1, num_layers + 1]; h_0 is
    the input of the first layer, and h_l the output of layer l - 1. `texts` are token ids;
    `on_batch` gets the number of texts that are done.
    """
    layerwise = LayerwiseModel(model)
    sums = torch.zeros([len(layerwise.layers) + 1] * 2, dtype=torch.float64)
    count = 0  # tokens
    order = sorted(texts, key=len, reverse=True)
    for start in range(0, len(order), batch_size):
        ids, mask = padded(order[start : start + batch_size], 0, left=True, device=model.device)
        options = shallow_view.mask_and_positions(model, mask, ids.shape[1])
        inputs = layerwise.layer_inputs(ids, kv_cache.new_cache(model), **options)
        tokens = mask.bool()
        units = [
            functional.normalize(state[tokens].float(), dim=-1).flatten()
            for state in layerwise.states(inputs)
        ]
        by_depth = torch.stack(units)  # [num_layers + 1, tokens * hidden_size]
        sums += (by_depth @ by_depth.T).cpu().double()
        count += int(mask.sum())
        on_batch(min(start + batch_size, len(order)))
    similar: list[list[float]] = (sums / count).tolist()
    return similar


class _KeysWritten(Exception):
    """A layer has added keys and values to the cache."""


class _StoppedAtUpdate(DynamicCache):  # type: ignore[misc]
    """A cache that ends the layer which updates it."""

    def update(self, *args: Any, **options: Any) -> Any:
        super().update(*args, **options)
        raise _KeysWritten


def _stopping_cache(value: object) -> object:
    """Return an argument of a layer; in place of a cache, one with the same entries that ends the
    layer.
    """
    if not isinstance(value, DynamicCache):
        return value
    cache = copy.copy(value)
    cache.__class__ = _StoppedAtUpdate
    return cache


class _NoQueries(nn.Module):
    """A module in place of a projection whose output is not read: zeros of its shape."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.new_zeros(1).expand(*hidden.shape[:-1], self.size)


def _without_queries(layer: nn.Module) -> nn.Module:
    """Return a layer without its projection of queries, if it has one of its own."""
    return shallow_view.substituted(
        layer,
        {
            module: _NoQueries(module.out_features)
            for name, module in layer.named_modules()
            if name.endswith("q_proj") and isinstance(module, nn.Linear)
        },
    )


class _LastLayerReached(Exception):
    """A forward pass reached the last layer; the argument is the layer's input."""


class _Recorder(nn.Module):
    """A module in place of a decoder layer, with the layer's attributes, which models read; it
    calls a function. The layer is not a submodule.
    """

    def __init__(self, layer: nn.Module, call: Callable[..., object]) -> None:
        super().__init__()
        self.__dict__["layer"] = layer
        self.call = call

    def forward(self, *args: object, **options: object) -> object:
        return self.call(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)


def _probe(model: PreTrainedModel) -> tuple[bool, list[nn.Module]]:
    """Run one step of the model to see how its layers are called.

    Returns True if layers return tuples, and the modules behind the last layer, such as the final
    norm and the output head, in the order in which they ran. The list is empty if the model's
    logits are not exactly those of these modules applied one after the other.
    """
    last_output: Any = None  # of the last layer
    behind = list[nn.Module]()
    layers = shallow_view.decoder_layers(model)
    inside = {module for layer in layers for module in layer.modules()}

    def begin(module: nn.Module, args: object, output: object) -> None:
        """Store the output of the last layer; modules that ran before it are not behind it."""
        nonlocal last_output
        last_output = output
        behind.clear()

    with ExitStack() as hooks, torch.no_grad():
        hooks.enter_context(layers[-1].register_forward_hook(begin))
        for module in set(model.modules()) - inside:
            if not any(module.children()):  # others run by these
                hook = module.register_forward_pre_hook(lambda module, _: behind.append(module))
                hooks.enter_context(hook)
        # Two tokens, because the state of a padding token can be zero.
        ids = torch.arange(2, device=model.device)[None]
        cache = kv_cache.new_cache(model)
        logits = shallow_view.forward_with_cache(model, ids, torch.ones_like(ids), cache)
    in_tuples = isinstance(last_output, tuple)
    hidden = last_output[0] if in_tuples else last_output
    try:
        with torch.no_grad():
            for module in behind:
                hidden = module(hidden)
        is_chain = torch.equal(hidden, logits)
    except (TypeError, ValueError, RuntimeError):  # the modules do not form a sequence
        is_chain = False
    return in_tuples, behind if is_chain else []
