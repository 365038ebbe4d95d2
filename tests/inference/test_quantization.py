import pytest
import torch

from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.options import choices_of
from ulskip_cli.inference.quantization import KINDS, num_bytes


def test_every_kind_is_in_the_schema():
    assert set(KINDS) == set(choices_of(ModelConfig.model_fields["quantization"].annotation))


def test_bytes_of_a_plain_tensor():
    assert num_bytes(torch.zeros(3, 5, dtype=torch.bfloat16)) == 30


def test_bytes_of_a_quantized_tensor_are_those_inside_it():
    torchao = pytest.importorskip(
        "torchao.quantization", reason="the extra quantization is not installed"
    )
    linear = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False))
    torchao.quantize_(linear, torchao.Int8WeightOnlyConfig())
    size = num_bytes(linear[0].weight)
    assert 64 * 32 <= size < 64 * 32 + 32 * 16  # int8 weights, and a scale and zero point a row
