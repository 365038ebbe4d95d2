"""Views: models that run some of a model's layers and share its weights.

A view copies the modules on the path to the layer stack and those with a `layer_idx`. It shares all
other modules and all parameters with its source, which is never changed. Architectures whose layers
depend on one another are refused. This module depends on the internals of transformers.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.pytorch_utils import Conv1D

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.schedule import Layers, Stage
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.float32_products import float32_products

# Keys of a text config that make layers depend on one another.
_DEPENDENCIES = {
    "num_kv_shared_layers": "its layers reuse the keys and values of other layers",
    "hidden_size_per_layer_input": "its layers read separate inputs selected by layer index",
    "n_recurrent_loops": "its layers run in loops that the config defines by layer index",
    "loop_num_passes": "its layers run in loops that the config defines by layer index",
    "n_layers_per_attn_res_block": "its layers read the outputs of earlier blocks of layers",
    "cross_attention_layers": "its config selects the cross-attention layers by layer index",
}
# Module attributes that only unsupported architectures have.
_UNSUPPORTED_ATTRIBUTES = {
    "_setup_cache": (
        "its layers store their recurrent state in module attributes instead of a cache"
    ),
    "layer_dic": "its layers share one block that selects weights by layer index",
    "create_position_ids_from_input_ids": (
        "its position ids start after its padding id, but generate starts them at 0"
    ),
    "image_patch_tokens": "it counts image tokens before every prompt, even without an image",
}
# Config lists with one entry per layer, and the entry that marks a dependent layer.
_DEPENDENT_ENTRIES = {"indexer_types": "shared", "kv_sharing_modes": "reuse"}
# Prefixes of a layer's forward arguments that are outputs of earlier layers, except the hidden
# states.
_EXTRA_INPUTS = ("prev_router", "previous_", "block_states")
LENGTH_DEPENDENT = "rotary positions that depend on the length"
LINEARS = (nn.Linear, Conv1D)
ModuleT = TypeVar("ModuleT", bound=nn.Module)
_INDICES = ("layer_idx", "layer_id")  # attributes that hold a layer's index
# compiled code of the source only
_COMPILED = ("_compiled_call", "_last_compile_config", "_compiled_call_impl")


@dataclass(frozen=True)
class StageView:
    """A view and the first decode step that it runs."""

    first_step: int  # step 0 generates the second token, because prefill generates the first
    view: PreTrainedModel
    places: Layers  # of its layers in the cache of the model that encodes the prompt


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the config of the decoder of a model, which may be a part of the model's config."""
    return model.config.get_text_config(decoder=True)


def num_layers(model: PreTrainedModel) -> int:
    """Return the number of decoder layers of a causal LM."""
    return len(layer_stack(model)[1])


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder layers of a causal LM in order."""
    return list(layer_stack(model)[1])


def shallow_view(
    model: PreTrainedModel,
    kept: Sequence[int],
    adapt: Callable[[int, nn.Module], nn.Module] = lambda place, layer: layer,
) -> PreTrainedModel:
    """Return a model of the `kept` layers that shares `model`'s weights; raise UsageError if these
    layers cannot run alone.

    The view is a normal Hugging Face model with `generate`, cache and compilation. Its `train()`
    and `to()` change `model` too. `adapt` gets each kept layer with its index in the view, and
    returns the layer that the view runs instead.
    """
    path, stack = layer_stack(model)
    kept = schedule.checked(len(stack), kept)
    layers = nn.ModuleList(adapt(new, _renumbered(stack[old], new)) for new, old in enumerate(kept))
    layers.training = stack.training
    view = substituted(model, {stack: layers})
    # The modules on the path, which are copies, get configs of the kept layers.
    configs: dict[int, PreTrainedConfig] = {}  # by id of the old one, because modules share them
    module = view
    for name in path.split("."):
        if old_config := module.__dict__.get("config"):
            if id(old_config) not in configs:
                configs[id(old_config)] = shallow_config(old_config, len(stack), kept)
            module.config = configs[id(old_config)]
        module = module.get_submodule(name)
    attention = _attention_layers(model)
    if attention and not _attention_layers(view):
        raise UsageError(
            f"{type(model).__name__}: expected an attention layer among the kept layers, got"
            f" {list(kept)}; add one of {attention}, because only attention layers count positions"
        )
    return view


def _attention_layers(model: PreTrainedModel) -> list[int]:
    """Return the layers whose cache has keys and values."""
    return [
        layer
        for layer, cached in enumerate(kv_cache.new_cache(model).layers)
        if isinstance(cached, CacheLayerMixin)
    ]


def substituted(module: ModuleT, replaced: Mapping[nn.Module, nn.Module]) -> ModuleT:
    """Return a copy of a module with the submodules `replaced` (new by old) and all others shared;
    the module itself if it has none of them.
    """
    if module in replaced:
        return replaced[module]  # type: ignore[return-value]
    return _with_children(module, lambda child: substituted(child, replaced))


def with_attributes(
    module: ModuleT, change: Callable[[nn.Module], Mapping[str, object]]
) -> ModuleT:
    """Return a copy of a module in which some submodules have other attributes, and all others are
    shared; `change` returns the new attributes of a submodule by name, or nothing.
    """
    changed = _with_children(module, lambda child: with_attributes(child, change))
    attributes = change(module)
    if attributes and changed is module:
        changed = copied(module, {})
    changed.__dict__.update(attributes)
    return changed


def _with_children(module: ModuleT, change: Callable[[nn.Module], nn.Module]) -> ModuleT:
    """Return a copy of a module with changed children, or the module if none changes."""
    children = {name: change(child) for name, child in module._modules.items() if child is not None}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    return copied(module, children)


def two_phase(
    model: PreTrainedModel,
    stages: Sequence[StageView],
    on_prefill: Callable[[DynamicCache], None],
) -> PreTrainedModel:
    """Return a model whose `generate` runs the prompt with `model` and decode steps with the views
    of `stages`. `on_prefill` gets the cache of the prompt in all layers of `model`.

    The state of decoding is in attributes of the cache: `steps`, the number of decode steps so far,
    and `view`, which runs them.
    """
    source_class: Any = type(model)
    by_first_step = {stage.first_step: stage for stage in stages}

    class TwoPhase(source_class):  # type: ignore[misc]
        # generate() reads this signature to decide which arguments it passes
        @functools.wraps(source_class.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            cache: Any = kwargs.get("cache")
            if not hasattr(cache, "places"):  # which pruning sets, so this is the prompt
                return model.forward(*args, **kwargs)
            stage = by_first_step.get(cache.steps)
            if stage is not None:
                kv_cache.prune_cache(cache, stage.places)
                cache.view = stage.view
            cache.steps += 1
            return cache.view.forward(*args, **kwargs)

        def _prefill(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super()._prefill(*args, **kwargs)
            on_prefill(outputs.cache)
            kv_cache.prune_cache(outputs.cache, stages[0].places)
            outputs.cache.steps = 0
            return outputs

    shell = copied(model, {})
    shell.__class__ = TwoPhase
    # generate() takes what a request leaves open from here
    shell.generation_config = GenerationConfig()
    return shell


def forward_with_cache(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    cache: DynamicCache,
    last_only: bool = False,
) -> Tensor:
    """Append `input_ids` [batch, new_len] to `cache` and return the logits [batch, new_len or 1,
    vocab_size].

    `attention_mask` is [batch, cached_len + new_len], 1 for tokens. `last_only` returns the logits
    of the last position only.
    """
    new_len = input_ids.shape[1]
    # A recurrent state is continued token by token; only its first tokens are read in one pass.
    if new_len > 1 and kv_cache.is_recurrent(cache) and attention_mask.shape[1] > new_len:
        lengths = range(attention_mask.shape[1] - new_len + 1, attention_mask.shape[1] + 1)
        steps = [
            forward_with_cache(model, input_ids[:, i : i + 1], attention_mask[:, :length], cache)
            for i, length in enumerate(lengths)
        ]
        return steps[-1] if last_only else torch.cat(steps, dim=1)
    options = mask_and_positions(model, attention_mask, new_len)
    limit = {}
    if last_only and "logits_to_keep" in inspect.signature(model.forward).parameters:
        # A position, whose states are copied, instead of a count, whose states are a view: torch
        # multiplies each row of a view alone, in bfloat16 hundreds of times slower (torch 2.13).
        limit = {"logits_to_keep": torch.tensor([new_len - 1])}
    if kv_cache.is_all_recurrent(cache):  # no layer attends to cached positions
        options["attention_mask"] = attention_mask[:, -new_len:]
    with float32_products(model, new_len):
        outputs = model(input_ids=input_ids, cache=cache, use_cache=True, **options, **limit)
    logits: Tensor = outputs.logits
    return logits[:, -1:] if last_only else logits


def mask_and_positions(
    model: PreTrainedModel, attention_mask: Tensor, new_len: int
) -> dict[str, Tensor]:
    """Return the mask [batch, cached_len + new_len] and, if the model takes them, the position ids
    [batch, new_len] of a forward pass, as its arguments by name; padding is not counted.
    """
    options = {"attention_mask": attention_mask}
    if takes_positions(model):
        options["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -new_len:]
    return options


def takes_positions(model: PreTrainedModel) -> bool:
    """Return True if positions come from position ids; models with ALiBi derive them from the
    mask.
    """
    has_alibi = getattr(text_config(model), "alibi", False)
    return not has_alibi and "position_ids" in inspect.signature(model.forward).parameters


def depends_on_length(model: PreTrainedModel) -> bool:
    """Return True if the rotary positions of all tokens of a pass depend on the last one."""
    rope = repr(getattr(text_config(model), "rope_parameters", None))
    return "'dynamic'" in rope or "'longrope'" in rope


def stage_views(
    stages: Sequence[Stage], prompt_layers: Layers, view: Callable[[Layers], PreTrainedModel]
) -> tuple[StageView, ...]:
    """Return the view of each stage after a prompt that `prompt_layers` encoded; `view` makes the
    model of a set of layers.
    """
    return tuple(
        StageView(
            stage.first_step,
            view(stage.kept_layers),
            tuple(map(prompt_layers.index, stage.kept_layers)),
        )
        for stage in stages
    )


def layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the path, such as "model.layers", and the stack of the decoder layers; raise
    UsageError if layers of the model cannot be skipped.
    """
    depth = text_config(model).num_hidden_layers
    stacks = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    }
    # A list inside a layer, such as its experts, can have as many entries as the model layers.
    outermost = [
        path for path in stacks if not any(path.startswith(f"{outer}.") for outer in stacks)
    ]
    found = [stacks[path] for path in outermost]
    if reason := unskippable_reason(model) or _stack_problem(found):
        raise UsageError(
            f"{type(model).__name__} is not supported: {reason}; docs/architectures.md lists"
            " supported models"
        )
    return outermost[0], found[0]


def _stack_problem(stacks: Sequence[nn.ModuleList]) -> str | None:
    """Return why no layer of the stacks in a model can be skipped, or None."""
    if len(stacks) != 1:
        return f"expected one stack of decoder layers, got {len(stacks)}"
    for layer in stacks[0]:
        for name in inspect.signature(layer.forward).parameters:
            if name.startswith(_EXTRA_INPUTS):
                return f"each layer reads a further output of the layer before it ({name})"
    return None


def copied(
    module: ModuleT, children: Mapping[str, nn.Module | None], kind: type | None = None
) -> ModuleT:
    """Return a copy of a module that shares its parameters, buffers and submodules. `children` by
    name replace submodules or are added; the copy is of the class `kind`, or of the module's class.
    """
    if "forward" in module.__dict__:  # bound to the module, it would run the old children
        raise UsageError(
            f"expected the original forward method of {type(module).__name__}, got one that other"
            " code has replaced; restore the method with: del module.forward"
        )
    shell = copy.copy(module)
    shell.__dict__ = {
        name: value for name, value in module.__dict__.items() if name not in _COMPILED
    }
    shell._modules = {**module._modules, **children}
    if kind is not None:
        shell.__class__ = kind
    return shell


def _renumbered(module: nn.Module, index: int) -> nn.Module:
    """Return a copy of `module` with another layer index; the copy shares all parts that have no
    layer index.
    """
    return with_attributes(
        module, lambda part: {name: index for name in _INDICES if name in part.__dict__}
    )


def shallow_config(source: PreTrainedConfig, depth: int, kept: Layers) -> PreTrainedConfig:
    """Copy a config of `depth` layers; reduce the number of layers and every per-layer list to the
    kept layers, whether the list is an attribute or computed by a property.
    """
    config = copy.deepcopy(source)
    inner = config.get_text_config(decoder=True)
    kind = type(inner)
    properties = {
        name: getattr(inner, name, None)
        for name in dir(kind)
        if "layer" in name and isinstance(getattr(kind, name), property)
    }
    computed = per_layer(properties, depth, kept)
    shorter = per_layer(vars(inner), depth, kept)
    for name, value in {"num_hidden_layers": len(kept), **shorter}.items():
        setattr(inner, name, value)
    # A property may compute its list from layer indices, and the view renumbers its layers. If the
    # new list differs from the kept entries of the old one, these replace the property in a
    # subclass.
    if any(getattr(inner, name) != value for name, value in computed.items()):
        inner.__class__ = type(kind.__name__, (kind,), computed)
    return config


def per_layer(values: Mapping[str, object], depth: int, kept: Sequence[int]) -> JsonObject:
    """Return the lists in `values` with one entry per layer, such as `layer_types`, by name and
    reduced to the kept layers. Their names contain "layer"; another list can have their length.
    """
    return {
        name: type(value)(value[i] for i in kept)
        for name, value in values.items()
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == depth
    }


def unskippable_reason(model: PreTrainedModel) -> str | None:
    """Return the reason why layers of a model cannot be skipped, or None if they can be skipped."""
    if model.config.is_encoder_decoder or not model.can_generate():
        return "it is not a decoder-only causal LM"
    config = text_config(model)
    for key, dependency in _DEPENDENCIES.items():
        if getattr(config, key, None):
            return f"{dependency} ({key})"
    for key, dependent in _DEPENDENT_ENTRIES.items():
        if dependent in (getattr(config, key, None) or ()):
            return (
                "some layers reuse the token selection or the keys and values of another layer"
                f" ({key})"
            )
    if (
        "cache" not in inspect.signature(model.forward).parameters
        or not model._supports_default_dynamic_cache()
    ):
        return "it has no cache with one entry per layer"
    for module in model.modules():
        for attribute, dependency in _UNSUPPORTED_ATTRIBUTES.items():
            if hasattr(module, attribute):
                return dependency
    return None
