"""A compiled OpenVINO model with the KV cache of one batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino
import torch
from openvino import properties
from openvino.properties import hint
from torch import Tensor


class OpenVinoRequest:
    """A model on the CPU whose states are the keys and values of all earlier passes."""

    def __init__(self, model: Path | openvino.Model, exact: bool) -> None:
        """Compile a model; `exact` computes and caches in float32, else the precision is the
        default of the machine.
        """
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
