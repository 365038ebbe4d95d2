"""Tensors in the layout of GGUF."""

import pytest
import torch

from ulskip_cli.inference.gguf_file import TYPES_OF_FORMAT, GgufTensors

CONFIG = {"model_type": "qwen2", "num_attention_heads": 2}


@pytest.mark.parametrize("weights", TYPES_OF_FORMAT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
def test_a_matrix_has_the_type_of_the_format_whatever_the_model_has(weights, dtype, name):
    matrix_type, head_type = TYPES_OF_FORMAT[weights]
    tensors = GgufTensors({name: torch.ones(4, 32, dtype=dtype)}, CONFIG, matrix_type, head_type)
    _, stored_type = tensors.array(name)
    assert stored_type == (head_type if "head" in name else matrix_type)
