"""Models that are built again from the config of a view, as after an export, and their comparison
with the view.
"""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ulskip_cli.core.errors import UsageError, reason

# A view renumbers its layers, as the rebuilt model does.
_NOT_COMPARED = ("layer_idx", "name_or_path", "training")


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
        raise UsageError(
            f"cannot build the model of a {type(config).__name__} without weights"
            f" ({reason(error)}); use --format schedule to export, and engine=torch in a run"
        ) from error
    return model


def first_difference(view: nn.Module, rebuilt: nn.Module) -> str | None:
    """Describe the first tensor shape, module type or plain attribute in which two models
    differ.
    """
    expected, got = (dict(_properties(model)) for model in (view, rebuilt))
    for key in expected | got:
        if expected.get(key) != got.get(key):
            return f"expected {key}={expected.get(key)}, got {got.get(key)}"
    return None


def _properties(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield the shape of every tensor, and the type and plain attributes of every module."""
    # Of the whole model, so that tied tensors count once.
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, list(tensor.shape)
    for path, module in model.named_modules():
        yield path, type(module).__name__
        for key, value in vars(module).items():
            is_plain = isinstance(value, bool | int | float | str | None)
            if is_plain and key not in _NOT_COMPARED and not key.startswith("_"):
                yield f"{path}.{key}", value
