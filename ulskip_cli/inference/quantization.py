"""Options of transformers that load quantized weights."""

import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ulskip_cli.core.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """A quantization method: the package that implements it, and its description in result rows."""

    package: str
    label: str


KINDS = {
    "torchao-int8": Kind("torchao", "torchao, int8 weights"),
    "bnb-int8": Kind("bitsandbytes", "bitsandbytes, LLM.int8()"),
    "bnb-nf4": Kind("bitsandbytes", "bitsandbytes, nf4 weights"),
}


def loading_options(name: str, dtype: str, device: torch.device) -> dict[str, Any]:
    """Return `from_pretrained` arguments for a key of `KINDS`; raise UsageError without its
    package. `dtype` is for compute.
    """
    kind = KINDS[name]
    if importlib.util.find_spec(kind.package) is None:
        raise UsageError(
            f"model.quantization={name} requires the package {kind.package}, which is not"
            f" installed; run: pip install {kind.package}"
        )
    if kind.package == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs every cast
    four = name == "bnb-nf4"
    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}
    config = BitsAndBytesConfig(load_in_8bit=not four, load_in_4bit=four, **options)
    return {
        "quantization_config": config,
        "device_map": {"": str(device)},
    }  # quantized weights cannot be moved later


def num_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor; for a quantized tensor, sum the bytes of its parts."""
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(num_bytes(getattr(tensor, name)) for name in names)
