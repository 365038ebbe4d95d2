"""GGUF files of Llama and Mistral models: the shape and the tensors. llama.cpp reads such files."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from ulskip_cli.core.errors import UsageError

_MODEL_TYPES = ("llama", "mistral")
_FILE_TYPES = {
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


@dataclass(frozen=True)
class GgufTensors:
    """The tensors of a model in the layout of GGUF."""

    read: Callable[[str], Tensor]  # a tensor by its name
    config: dict[str, Any]  # of the written model
    dtype: torch.dtype | None  # of matrices; None: that of the source. Vectors are float32

    def array(self, name: str) -> tuple[np.ndarray[Any, Any], torch.dtype]:
        """Return a tensor and its dtype; a bfloat16 tensor becomes uint16 with the same bits, because numpy has no bfloat16."""
        tensor = self.read(name)
        heads = self.config["num_attention_heads"]
        for part, count in (("q_proj", heads), ("k_proj", self.config.get("num_key_value_heads") or heads)):
            if f".{part}." in name:
                tensor = _interleaved(tensor, count)
        tensor = (tensor.to(self.dtype) if self.dtype else tensor).contiguous()
        if tensor.dim() == 1:
            tensor = tensor.float()
        if tensor.dtype not in _FILE_TYPES:
            raise UsageError(f"GGUF does not support {tensor.dtype} ({name}); use model.dtype=float32, float16 or bfloat16")
        return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy(), tensor.dtype


def unsupported_reason(config: dict[str, Any]) -> str | None:
    """Return a property of a config.json that GGUF's architecture `llama` does not support, or None if there is none."""
    kind, window, activation = config.get("model_type"), config.get("sliding_window"), config.get("hidden_act", "silu")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    reasons = {
        f"expected model_type={' or '.join(_MODEL_TYPES)}, got {kind}": kind not in _MODEL_TYPES,
        f"expected rope_type=default, got {rope_type}": rope_type != "default",
        "expected attention_bias=false and mlp_bias=false": config.get("attention_bias") or config.get("mlp_bias"),
        f"expected sliding_window=null, got {window}": kind == "mistral" and window,
        f"expected hidden_act=silu, got {activation}": activation != "silu",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def write_model(writer: gguf.GGUFWriter, tensors: GgufTensors, new_names: dict[str, str]) -> tuple[int, torch.dtype]:
    """Write shape and tensors; `new_names` maps a name of `tensors` to a name in the written model.

    One tensor is in memory at a time. Return the number of parameters, and the dtype with the most bytes.
    """
    _add_shape(writer, tensors.config)
    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, tensors.config["num_hidden_layers"])
    parameters, bytes_by_dtype = 0, Counter[torch.dtype]()
    for name, new_name in new_names.items():
        gguf_name = name_map.get_name(new_name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise UsageError(f"GGUF does not support the tensor {new_name}")
        array, dtype = tensors.array(name)
        parameters += array.size
        bytes_by_dtype[dtype] += array.nbytes
        writer.add_tensor_info(gguf_name, array.shape, array.dtype, array.nbytes, _FILE_TYPES[dtype][0])
    ((main_dtype, _),) = bytes_by_dtype.most_common(1)
    writer.add_file_type(_FILE_TYPES[main_dtype][1])
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
        write()
    for name in new_names:
        writer.write_tensor_data(tensors.array(name)[0])
    writer.close()
    return parameters, main_dtype


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Reorder [heads * head_dim, width] so that the two rows of each rotation are adjacent."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
