"""Models as OpenVINO files whose requests contain the KV cache: tracing, states, and formats of the
weights.
"""

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
import transformers
from openvino import opset13
from openvino._offline_transformations import (
    apply_make_stateful_transformation,
    apply_moc_transformations,
)
from openvino.frontend import FrontEndManager, OpConversionFailure
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines.export import cached_export, exportable_tensors
from ulskip_cli.engines.openvino.request import OpenVinoRequest
from ulskip_cli.engines.torch import static_cache
from ulskip_cli.engines.torch.static_cache import takes_positions
from ulskip_cli.inference.shallow_view import forward_with_cache, new_cache

ENGINE = "openvino"
GROUP_SIZE = 64  # of int4; widths of small models are not multiples of 128
_LARGEST_ERROR = 1e-3  # of a converted model's logits, relative to the largest logit
_FORMAT = 1  # increase it if files of earlier versions must not be used


class GrowingLayer(CacheLayerMixin):  # type: ignore[misc]
    """The keys and values of one layer, which each forward pass extends; also sliding layers keep
    all positions.
    """

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing, because the tensors exist already."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values; return all."""
        self.keys, self.values = (
            torch.cat([self.keys, key_states], 2),
            torch.cat([self.values, value_states], 2),
        )
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number and the offset of the keys that a query attends to."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of positions."""
        return int(self.keys.shape[2])

    def get_max_length(self) -> int:
        """Return -1, because the length is not limited."""
        return -1


class Masks:
    """The additive masks of a model's attention types, for prompts and steps."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._layers = model, len(new_cache(model).layers)
        self.kinds = sorted(self._by_kind(torch.ones(1, 0, dtype=torch.long), 2))

    def of_prompt(self, mask: Tensor) -> dict[str, Tensor]:
        """Return the masks [batch, 1, prompt_len, prompt_len] of prompts with the padding mask
        [batch, prompt_len].
        """
        padding = torch.zeros(mask.shape).masked_fill(mask == 0, HIDDEN)[:, None, None]
        return {
            kind: torch.minimum(causal, padding)
            for kind, causal in self._by_kind(mask[:, :0], mask.shape[1]).items()
        }

    def of_steps(self, mask: Tensor, steps: int) -> dict[str, Tensor]:
        """Return the masks [batch, 1, steps, seen + steps] of steps; `mask` [batch, seen] is the
        padding mask before them.
        """
        return self._by_kind(mask, steps)

    def _by_kind(self, mask: Tensor, steps: int) -> dict[str, Tensor]:
        past = mask.shape[1]
        cache = DynamicCache()
        cache.layers = [
            GrowingLayer(*[torch.empty(1, 1, past, 0)] * 2) for _ in range(self._layers)
        ]
        masks = static_cache.full_masks(self._model, cache, mask, steps, past + steps)
        by_kind = (
            {"mask": masks}
            if isinstance(masks, Tensor)
            else {f"mask.{kind}": tensor for kind, tensor in masks.items()}
        )
        return {kind: tensor.float().clamp(min=HIDDEN) for kind, tensor in by_kind.items()}


HIDDEN = torch.finfo(
    torch.float16
).min  # of masks: finite in each inference precision, also where a row is padding only


def default_weights(model: PreTrainedModel) -> str:
    """Return the format of a model's own weights; bfloat16 is stored as f16."""
    if model.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UsageError(
            f"engine={ENGINE} does not support weights in {model.dtype}; use model.dtype=bfloat16"
        )
    return "f32" if model.dtype == torch.float32 else "f16"


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return the property of a model that this engine does not support, or None."""
    config = model.config.get_text_config(decoder=True)
    if model.device.type != "cpu":
        return f"a model on {model.device}; set model.device=cpu"
    if not takes_positions(model):
        return "a model without position ids"
    if not static_cache.can_fix(new_cache(model)):
        return "a cache with states other than keys and values"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"the attention implementation {config._attn_implementation}"
    if any(
        kind in repr(getattr(config, "rope_parameters", None))
        for kind in ("'dynamic'", "'longrope'")
    ):
        return "rotary positions that depend on the length"
    return None


def export(model: PreTrainedModel, weights: str) -> Path:
    """Return the OpenVINO file of a model; raise UsageError if the engine does not support the
    model.
    """
    if reason := unsupported_reason(model):
        raise _refusal(model, reason)
    tensors = exportable_tensors(model, ENGINE)
    scalars = [
        (
            name,
            sorted(
                (key, value)
                for key, value in vars(module).items()
                if isinstance(value, bool | int | float | str)
            ),
        )
        for name, module in model.named_modules()
    ]
    settings = [
        _FORMAT,
        weights,
        GROUP_SIZE,
        openvino.__version__,
        torch.__version__,
        transformers.__version__,
        type(model).__name__,
        model.config.to_dict(),
        scalars,
    ]

    def write(folder: Path) -> None:
        folder.mkdir()
        converted = _converted(
            model if model.dtype == torch.float32 else copy.deepcopy(model).float()
        )
        if weights.startswith("int"):
            converted = _compressed(converted, weights)
        openvino.save_model(converted, folder / "model.xml", compress_to_fp16=weights != "f32")

    return cached_export(ENGINE, tensors, settings, "", write) / "model.xml"


class _Traced(nn.Module):
    """A forward pass whose inputs and outputs are tensors only."""

    def __init__(self, model: PreTrainedModel, kinds: Sequence[str]) -> None:
        super().__init__()
        self.model, self.kinds = model, kinds

    def forward(self, input_ids: Tensor, position_ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of the last position, and all keys and values by layer."""
        masks, past = dict(zip(self.kinds, rest, strict=False)), rest[len(self.kinds) :]
        cache = DynamicCache()
        cache.layers = [GrowingLayer(*past[i : i + 2]) for i in range(0, len(past), 2)]
        mask = masks.get(
            "mask", {kind.removeprefix("mask."): tensor for kind, tensor in masks.items()}
        )
        logits = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1], *(
            tensor for layer in cache.layers for tensor in (layer.keys, layer.values)
        )


def _converted(model: PreTrainedModel) -> openvino.Model:
    """Return a float32 model whose request contains the KV cache; raise UsageError if its logits
    are not those of `model`.
    """
    masks, cache = Masks(model), new_cache(model)
    two = torch.ones(2, 2, dtype=torch.long)
    with torch.no_grad():
        forward_with_cache(model, two, two, cache)
    past = [
        torch.cat([tensor, tensor[:, :, :1]], 2)
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    ]
    seen = torch.ones(2, past[0].shape[2], dtype=torch.long)
    steps = masks.of_steps(seen, 2)
    example = (two, two + 2, *(steps[kind] for kind in masks.kinds), *past)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # the tracer warns about each Python value that it stores as a constant
        decoder = TorchScriptPythonDecoder(
            _Traced(model, masks.kinds), example_input=example, trace_kwargs={"check_trace": False}
        )
        frontend = FrontEndManager().load_by_framework(
            "pytorch"
        )  # openvino.convert_model would send telemetry
        try:
            converted = frontend.convert(frontend.load(decoder))
        except OpConversionFailure as error:  # an operation without a conversion rule
            raise _refusal(model, " ".join(str(error).split())[-120:]) from None
    apply_moc_transformations(converted, cf=False, smart_reshape=False)
    if len(converted.inputs) != len(example):
        raise _refusal(
            model, f"a conversion with {len(converted.inputs)} instead of {len(example)} inputs"
        )
    names = [f"{kind}.{i}" for i in range(len(past) // 2) for kind in ("keys", "values")]
    for port, name in zip(
        converted.inputs, ["input_ids", "position_ids", *masks.kinds, *names], strict=True
    ):
        port.get_tensor().set_names({name})
    for port, name in zip(
        converted.outputs, ["logits", *(f"new.{name}" for name in names)], strict=True
    ):
        port.get_tensor().set_names({name})
    _make_stateful(converted, dict(zip(names, past, strict=True)))
    _check(model, masks, converted)
    return converted


def _make_stateful(model: openvino.Model, past: dict[str, Tensor]) -> None:
    """Move keys and values from inputs and outputs to states, which an input `rows` reorders by
    sequence before each pass.
    """
    rows = opset13.parameter([-1], openvino.Type.i32, name="rows")
    rows.output(0).get_tensor().set_names({"rows"})
    model.add_parameters([rows])
    for name in past:
        port = model.input(name)
        readers = port.get_target_inputs()
        chosen = opset13.gather(port, rows, 0)
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
        heads, width = past[name].shape[1], past[name].shape[3]
        port.get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, width]))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {name: f"new.{name}" for name in past})
    batch = opset13.gather(
        opset13.shape_of(model.input("input_ids"), "i64"),
        opset13.constant(np.array([0])),
        opset13.constant(0),
    )
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = node.get_output_partial_shape(0)
            sizes = opset13.constant(np.array([heads.get_length(), 0, width.get_length()]))
            empty = opset13.broadcast(
                opset13.constant(np.float32(0)), opset13.concat([batch, sizes], 0)
            )
            node.set_arguments([empty.output(0)])
    model.validate_nodes_and_infer_types()


def _check(model: PreTrainedModel, masks: Masks, converted: openvino.Model) -> None:
    """Raise UsageError if the logits of prompts and a step differ from those of the model, e.g.
    since branches are traced.
    """
    request = OpenVinoRequest(converted, exact=True)
    count = min(64, model.config.get_text_config(decoder=True).vocab_size)
    ids = torch.arange(3 * 7).reshape(3, 7) * 5 % count
    seen = torch.ones_like(ids)
    seen[1, :4] = 0
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    prompt, step = masks.of_prompt(seen[:, :6]), masks.of_steps(seen[:, :6], 1)
    got = [
        request(ids[:, :6], positions[:, :6], prompt),
        request(ids[:, 6:], positions[:, 6:], step),
    ]
    cache = new_cache(model)
    with torch.no_grad():
        wanted = [
            forward_with_cache(model, ids[:, :6], seen[:, :6], cache, last_only=True),
            forward_with_cache(model, ids[:, 6:], seen, cache, last_only=True),
        ]
    error = max(
        float((logits - expected[:, -1]).abs().max() / expected.abs().max())
        for logits, expected in zip(got, wanted, strict=True)
    )
    if not error < _LARGEST_ERROR:
        raise _refusal(model, f"a conversion whose logits differ by {error:.2g}")


def _compressed(model: openvino.Model, weights: str) -> openvino.Model:
    """Return a model with weights in int8, or in int4 with embeddings and head in int8."""
    os.environ.setdefault("NNCF_CI", "1")  # no telemetry
    try:
        import nncf
    except ImportError:
        raise UsageError(
            f"engine.weights={weights} requires the package nncf, which is not installed; run: pip"
            " install 'ulskip[openvino]'"
        ) from None
    logging.getLogger("nncf").setLevel(logging.ERROR)
    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    if weights == "int4":
        fallback = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        )
        options = {
            "mode": nncf.CompressWeightsMode.INT4_SYM,
            "group_size": GROUP_SIZE,
            "ratio": 1.0,
            "advanced_parameters": fallback,
        }
    with contextlib.redirect_stdout(io.StringIO()):  # nncf prints a progress bar
        return nncf.compress_weights(model, **options)


def _refusal(model: PreTrainedModel, reason: str) -> UsageError:
    return UsageError(
        f"engine={ENGINE} does not support {type(model).__name__} ({reason}); use engine=torch"
    )
