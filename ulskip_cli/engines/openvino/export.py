"""Models as OpenVINO files, and requests that contain the KV cache: tracing, states, masks, and
formats of the weights.
"""

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
import transformers
from openvino import opset13, properties
from openvino._offline_transformations import (
    apply_make_stateful_transformation,
    apply_moc_transformations,
)
from openvino.frontend import FrontEndManager, OpConversionFailure
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.properties import hint
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines.library import cached_export, exportable_tensors
from ulskip_cli.engines.torch import session, static_cache
from ulskip_cli.inference.kv_cache import filled_cache, new_cache
from ulskip_cli.inference.shallow_view import (
    LENGTH_DEPENDENT,
    depends_on_length,
    forward_with_cache,
    takes_positions,
    text_config,
)
from ulskip_cli.inference.teacher_forcing import encode_prompt

ENGINE = "openvino"
GROUP_SIZE = 64  # of int4; widths of small models are not multiples of 128
_LARGEST_ERROR = 1e-3  # of a converted model's logits, relative to the largest logit

# Of masks: finite in each inference precision, also where a row is padding only.
HIDDEN = torch.finfo(torch.float16).min


class Masks:
    """The additive masks of a model's attention types, for prompts and steps."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.kinds = sorted(self.of_steps(torch.ones(1, 0, dtype=torch.long), 2))

    def of_prompt(self, mask: Tensor) -> dict[str, Tensor]:
        """Return the attention masks [batch, 1, prompt_len, prompt_len] of prompts; `mask` [batch,
        prompt_len] is the padding mask.
        """
        padding = torch.zeros(mask.shape).masked_fill(mask == 0, HIDDEN)[:, None, None]
        causal = self.of_steps(mask[:, :0], mask.shape[1])
        return {kind: torch.minimum(tensor, padding) for kind, tensor in causal.items()}

    def of_steps(self, mask: Tensor, steps: int) -> dict[str, Tensor]:
        """Return the masks [batch, 1, steps, seen + steps] of steps; `mask` [batch, seen] is the
        padding mask before them.
        """
        # masks depend on one layer
        cache = filled_cache([torch.empty(1, 1, mask.shape[1], 1)] * 2)
        masks = static_cache.step_masks(self._model, cache, mask, steps)
        return {kind or "mask": tensor.float().clamp(min=HIDDEN) for kind, tensor in masks.items()}


class OpenVinoRequest:
    """A model on the CPU whose states are the keys and values of all earlier passes."""

    def __init__(self, model: Path | openvino.Model, masks: Masks, exact: bool) -> None:
        """Compile a model; `exact` computes and caches in float32, else the precision is the
        default of the machine.
        """
        self.masks = masks
        options: dict[object, object] = {
            hint.performance_mode: hint.PerformanceMode.LATENCY,
            hint.enable_cpu_pinning: False,  # several processes would share the same cores
            properties.num_streams: 1,
            properties.inference_num_threads: torch.get_num_threads(),
        }
        if exact:
            options |= {
                hint.inference_precision: openvino.Type.f32,
                hint.kv_cache_precision: openvino.Type.f32,
                hint.dynamic_quantization_group_size: 0,
            }
        core = openvino.Core()
        model = core.read_model(model) if isinstance(model, Path) else model
        shapes = [
            node.get_output_partial_shape(0)
            for node in model.get_ops()
            if node.get_type_name() == "ReadValue"
        ]
        self._width: int = sum(shape[1].get_length() * shape[3].get_length() for shape in shapes)
        self.compiled = core.compile_model(model, "CPU", options)
        self._request = self.compiled.create_infer_request()

    def clear(self) -> None:
        """Forget all sequences.

        A new inference request replaces the old one, because a cache in low precision gave NaN
        logits after `reset_state` if rows of the earlier batch had ended (openvino 2026.4).
        """
        self._request = self.compiled.create_infer_request()

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        masks: Mapping[str, Tensor],
        rows: Tensor | None = None,
        count: int = 1,
    ) -> Tensor:
        """Append tokens [batch, new_len]; return the logits [batch, count, vocab_size] after the
        last `count` of them.

        Each mask is [batch, 1, new_len, seen + new_len]. `rows` [batch], in int32, selects the
        sequences that continue.
        """
        batch, new_len = input_ids.shape
        rows = torch.arange(batch, dtype=torch.int32) if rows is None else rows
        last = torch.arange(new_len - count, new_len)
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "last": last, "rows": rows}
        inputs |= masks
        arrays = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        outputs = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs["logits"].copy())  # the next pass overwrites them

    def take_layers(self, other: "OpenVinoRequest", layers: Sequence[int]) -> None:
        """Replace the keys and values of all layers by those of `layers` in another request."""
        states = other._states()
        for name, state in self._states().items():
            kind, layer = name.split(".")
            state.state = states[f"{kind}.{layers[int(layer)]}"].state

    def remove(self, count: int) -> None:
        """Forget the last `count` positions; OpenVINO copies the others."""
        for state in self._states().values():
            kept = np.ascontiguousarray(state.state.data[:, :, :-count])
            state.state = openvino.Tensor(kept)

    def num_bytes(self, num_tokens: int) -> int:
        """Return the bytes of the keys and values of `num_tokens` tokens in all sequences, without
        the scales of a rounded cache.
        """
        size: int = self.compiled.get_property(hint.kv_cache_precision).size
        return num_tokens * self._width * size

    def _states(self) -> dict[str, Any]:
        return {state.name.split("new.")[0]: state for state in self._request.query_state()}


def unsupported_by_openvino(model: PreTrainedModel) -> str | None:
    """Return the property of a model that this engine does not support, or None."""
    if not takes_positions(model):
        return "a model without position ids"
    if depends_on_length(model):
        return LENGTH_DEPENDENT
    return session.unsupported_by_loop(model)


def export_openvino(model: PreTrainedModel, weights: str) -> Path:
    """Return the OpenVINO file of a model; raise UsageError if the engine does not support the
    model.
    """
    if reason := unsupported_by_openvino(model):
        raise _refusal(model, reason)
    tensors = exportable_tensors(model, ENGINE)
    scalars = [
        (name, key, value)
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float | str)
    ]
    settings = [
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
        """Convert the model from float32 weights, and write it in the format `weights`."""
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

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, last: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the logits of the positions `last` [count], and all keys and values by layer."""
        masks, past = dict(zip(self.kinds, rest, strict=False)), rest[len(self.kinds) :]
        cache = filled_cache(past)
        mask = masks.get("mask", masks)
        logits = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=True,
            logits_to_keep=last,
        ).logits
        return logits, *_states(cache)


def _states(cache: DynamicCache) -> list[Tensor]:
    return [state for layer in cache.layers for state in (layer.keys, layer.values)]


def _converted(model: PreTrainedModel) -> openvino.Model:
    """Return a float32 model whose request contains the KV cache; raise UsageError if its logits
    are not those of `model`.
    """
    # The tracer's example: two sequences with two new tokens after three positions, because a
    # number of positions that equals the others could be taken for one of them.
    masks = Masks(model)
    ids = prompt_mask = torch.ones(2, 2, dtype=torch.long)
    with torch.no_grad():
        cache = encode_prompt(model, ids, prompt_mask).cache
    past = [torch.cat([state, state[:, :, :1]], 2) for state in _states(cache)]
    steps = masks.of_steps(torch.ones(2, past[0].shape[2], dtype=torch.long), 2)
    positions, last = torch.full_like(ids, 3), torch.arange(2)
    example = (ids, positions, last, *(steps[kind] for kind in masks.kinds), *past)
    names = [f"{part}.{i}" for i in range(len(past) // 2) for part in ("keys", "values")]
    inputs = ["input_ids", "position_ids", "last", *masks.kinds, *names]
    outputs = ["logits", *(f"new.{name}" for name in names)]
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns about each Python value that it stores as a constant.
        warnings.simplefilter("ignore")
        traced = _Traced(model, masks.kinds)
        options = {"check_trace": False}
        decoder = TorchScriptPythonDecoder(traced, example_input=example, trace_kwargs=options)
    # openvino.convert_model would send telemetry
    frontend = FrontEndManager().load_by_framework("pytorch")
    try:
        converted = frontend.convert(frontend.load(decoder))
        apply_moc_transformations(converted, cf=False, smart_reshape=False)
        ports = [*converted.inputs, *converted.outputs]
        for port, name in zip(ports, [*inputs, *outputs], strict=True):
            port.get_tensor().set_names({name})
    # an operation without a conversion rule, or an input that the model does not read
    except (OpConversionFailure, ValueError) as error:
        raise _refusal(model, " ".join(str(error).split())[-120:]) from None
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
    because tracing fixes a branch.
    """
    request = OpenVinoRequest(converted, masks, exact=True)
    count = min(64, text_config(model).vocab_size)
    ids = torch.arange(3 * 7).reshape(3, 7) * 5 % count
    seen = torch.ones_like(ids)
    seen[1, :4] = 0
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    cache, errors = new_cache(model), list[float]()
    for start, end, step_masks in (
        (0, 6, masks.of_prompt(seen[:, :6])),
        (6, 7, masks.of_steps(seen[:, :6], 1)),
    ):
        got = request(ids[:, start:end], positions[:, start:end], step_masks)[:, -1]
        with torch.no_grad():
            logits = forward_with_cache(model, ids[:, start:end], seen[:, :end], cache)[:, -1]
        errors.append(float((got - logits).abs().max() / logits.abs().max()))
    error = max(errors)
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
    with contextlib.redirect_stdout(io.StringIO()):  # nncf prints a progress bar
        if weights == "int8":
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=GROUP_SIZE,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
            ),
        )


def _refusal(model: PreTrainedModel, reason: str) -> UsageError:
    return UsageError(
        f"engine={ENGINE} does not support {type(model).__name__} ({reason}); use engine=torch"
    )
