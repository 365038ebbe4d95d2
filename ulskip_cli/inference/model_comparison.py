"""Compare a view with the model that a config describes, module by module.

Some views cannot be described by a config: GPT-2 can scale the attention of a layer by its index.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ulskip_cli.core.errors import UsageError

_PLAIN_TYPES = (bool, int, float, str, type(None))
_NOT_COMPARED = (
    "layer_idx",
    "name_or_path",
    "training",
)  # a view renumbers its layers, as the rebuilt model does


def first_difference(view: nn.Module, rebuilt: nn.Module) -> str | None:
    """Describe the first tensor shape, module type or plain attribute in which two models
    differ.
    """
    expected, found = (dict(_properties(model)) for model in (view, rebuilt))
    for key in expected | found:
        if expected.get(key) != found.get(key):
            return f"expected {key}={expected.get(key)}, got {found.get(key)}"
    return None


def _properties(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the shape of every tensor, and the type and plain attributes of every module."""
    for name, tensor in (
        *model.named_parameters(),
        *model.named_buffers(),
    ):  # of the whole model, so that tied tensors count once
        yield name, list(tensor.shape)
    for path, module in model.named_modules():
        yield path, type(module).__name__
        for key, value in vars(module).items():
            if (
                isinstance(value, _PLAIN_TYPES)
                and key not in _NOT_COMPARED
                and not key.startswith("_")
            ):
                yield f"{path}.{key}", value


def meta_model(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """Return a model without weights; raise UsageError if the config's model class cannot be built
    that way.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UsageError(
            f"cannot build the model of a {type(config).__name__} without weights ({reason}); use"
            " --format schedule to export, and engine=torch in a run"
        ) from error
    return model
