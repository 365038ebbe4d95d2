"""GGUF files of Llama, Mistral and Qwen models: the shape and the tensors. llama.cpp reads them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.gguf_header import GGUF_ARCHITECTURES

_F32, _F16, _BF16 = Type.F32, Type.F16, Type.BF16
TYPES = {torch.float32: _F32, torch.float16: _F16, torch.bfloat16: _BF16}
DTYPES = {type_: dtype for dtype, type_ in TYPES.items()}
# Formats by name: the types of matrices, and of embedding and head, which lose more by four bits.
TYPES_OF_FORMAT = {
    "f32": (_F32, _F32),
    "f16": (_F16, _F16),
    "bf16": (_BF16, _BF16),
    "q8_0": (Type.Q8_0, Type.Q8_0),
    "q4_0": (Type.Q4_0, Type.Q8_0),
}


@dataclass(frozen=True)
class GgufTensors:
    """The tensors of a model in the layout of GGUF."""

    tensors: Mapping[str, Tensor]
    config: JsonObject  # of the written model
    matrix_type: Type | None = None  # None: the type of each tensor
    head_type: Type | None = None  # of embedding and head

    def array(self, name: str) -> tuple[np.ndarray, Type]:
        """Return a tensor's values in the layout of GGUF, and the type in which they are stored;
        numpy has no bfloat16 and no blocks, so the values of these types are unsigned integers.
        """
        tensor, stored_type = self.tensors[name], self._stored_type(name)
        if architecture(self.config) == "llama":
            tensor = _in_rotated_order(name, tensor, self.config)
        if stored_type in DTYPES:
            tensor = tensor.to(DTYPES[stored_type]).contiguous()
            if stored_type is _BF16:
                tensor = tensor.view(torch.uint16)
            return tensor.numpy(), stored_type
        if tensor.shape[-1] % 32:  # the size of a block
            raise UsageError(
                f"{stored_type.name} requires rows of a multiple of 32 weights, got"
                f" {tensor.shape[-1]} ({name})"
            )
        return gguf.quants.quantize(tensor.float().numpy(), stored_type), stored_type

    def _stored_type(self, name: str) -> Type:
        """Return the type in which a tensor is stored; raise UsageError if GGUF has none for it."""
        tensor = self.tensors[name]
        if tensor.dtype not in TYPES:
            raise UsageError(
                f"GGUF does not support {tensor.dtype} ({name}); use model.dtype=float32, float16"
                " or bfloat16"
            )
        if tensor.dim() == 1:  # llama.cpp adds and multiplies by vectors in float32 alone
            return _F32
        is_head = "embed" in name or "lm_head" in name
        wanted = self.head_type if is_head else self.matrix_type
        return TYPES[tensor.dtype] if wanted is None else wanted


def _in_rotated_order(name: str, tensor: Tensor, config: JsonObject) -> Tensor:
    """Return a matrix of a Llama model; in that of queries or keys, the two rows that rotary
    embeddings rotate together are side by side in GGUF, and half a head apart in Hugging Face.
    """
    heads = config["num_attention_heads"]
    if ".k_proj." in name:
        heads = config.get("num_key_value_heads") or heads
    elif ".q_proj." not in name:
        return tensor
    halves = tensor.reshape(heads, 2, -1, tensor.shape[-1])
    return halves.transpose(1, 2).reshape(tensor.shape)


def architecture(config: JsonObject) -> str:
    """Return GGUF's name for the architecture of a config.json that it supports."""
    return GGUF_ARCHITECTURES[config["model_type"]]


def write_model(writer: gguf.GGUFWriter, model: GgufTensors) -> tuple[int, Type]:
    """Write shape and tensors; return the number of parameters, and the type with the most bytes.

    One converted tensor is in memory at a time.
    """
    _add_shape(writer, model.config)
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = model.config["num_hidden_layers"]
    name_map = gguf.get_tensor_name_map(numbers[architecture(model.config)], layers)
    parameters, bytes_by_type = 0, Counter[Type]()
    for name in model.tensors:
        gguf_name = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise UsageError(f"GGUF does not support the tensor {name}")
        array, stored_type = model.array(name)
        parameters += model.tensors[name].numel()
        bytes_by_type[stored_type] += array.nbytes
        writer.add_tensor_info(gguf_name, array.shape, array.dtype, array.nbytes, stored_type)
    ((main_type, _),) = bytes_by_type.most_common(1)
    share = "ALL" if main_type is _F32 else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{share}_{main_type.name}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in model.tensors:
        writer.write_tensor_data(model.array(name)[0])
    writer.close()
    return parameters, main_type


def _add_shape(writer: gguf.GGUFWriter, config: JsonObject) -> None:
    """Write the sizes of a model from its config.json."""
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
