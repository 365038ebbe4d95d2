"""A compiled OpenVINO model with the KV cache of one batch, and its masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino
import torch
from openvino import properties
from openvino.properties import hint
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ulskip_cli.engines.torch import static_cache
from ulskip_cli.inference.shallow_view import new_cache

# Of masks: finite in each inference precision, also where a row is padding only.
HIDDEN = torch.finfo(torch.float16).min


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
        cache = filled_cache([torch.empty(1, 1, past, 1)] * 2 * self._layers)
        masks = static_cache.full_masks(self._model, cache, mask, steps, past + steps)
        by_kind = (
            {"mask": masks}
            if isinstance(masks, Tensor)
            else {f"mask.{kind}": tensor for kind, tensor in masks.items()}
        )
        return {kind: tensor.float().clamp(min=HIDDEN) for kind, tensor in by_kind.items()}


def filled_cache(states: Sequence[Tensor]) -> DynamicCache:
    """Return a cache of keys, values, keys, values, ... by layer; also sliding layers keep all
    positions.
    """
    cache = DynamicCache()
    for keys, values in zip(states[::2], states[1::2], strict=True):
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        cache.layers.append(layer)
    return cache


class OpenVinoRequest:
    """A model on the CPU whose states are the keys and values of all earlier passes."""

    def __init__(self, model: Path | openvino.Model, masks: Masks, exact: bool) -> None:
        """Compile a model; `exact` computes and caches in float32, else the precision is the
        default of the machine.
        """
        self.masks = masks
        options: dict[Any, Any] = {
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

        A new request replaces the old one: after `reset_state`, and rows that ended in the batch
        before, later batches of a rounded cache had NaN logits (openvino 2026.4).
        """
        self._request = self.compiled.create_infer_request()

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        masks: Mapping[str, Tensor],
        rows: Tensor | None = None,
    ) -> Tensor:
        """Append tokens [batch, new_len]; return the logits [batch, vocab_size] after them.

        Each mask is [batch, 1, new_len, seen + new_len]. `rows` [batch], in int32, selects the
        sequences that continue.
        """
        rows = torch.arange(len(input_ids), dtype=torch.int32) if rows is None else rows
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "rows": rows, **masks}
        arrays = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
        outputs = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs["logits"].copy())

    def take_layers(self, other: "OpenVinoRequest", layers: Sequence[int]) -> None:
        """Replace the keys and values of all layers by those of `layers` in another request."""
        states = other._states()
        for name, state in self._states().items():
            kind, layer = name.split(".")
            state.state = states[f"{kind}.{layers[int(layer)]}"].state

    def num_bytes(self, num_tokens: int) -> int:
        """Return the bytes of the keys and values of that many tokens in all sequences, without the
        scales of rounded ones.
        """
        size: int = self.compiled.get_property(hint.kv_cache_precision).size
        return num_tokens * self._width * size

    def _states(self) -> dict[str, Any]:
        return {state.name.split("new.")[0]: state for state in self._request.query_state()}
