"""A check that the tensors of a checkpoint match its config."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view

MAX_NAMES = 3  # tensor names in a message
# Buffers that earlier versions of transformers saved; now the models compute them.
_OLD_BUFFERS = re.compile(r"(inv_freq|position_ids|(attn|attention)\.(masked_)?bias)$")
# A quantizer creates its own tensors (scales, codebooks) while loading; only the weights must be in
# the checkpoint.
_WEIGHTS = re.compile(r"(^|[._])(q?weight|bias)$")


def check_weights(model: PreTrainedModel, loading_info: Mapping[str, Any], path: str) -> None:
    """Raise UsageError if a checkpoint lacks tensors, has tensors of wrong shapes, or has surplus
    tensors in decoder layers.

    Surplus tensors of other tasks (a classification head, a vision tower) are ignored.
    """
    is_quantized = getattr(model.config, "quantization_config", None) is not None
    missing = {
        name for name in loading_info["missing_keys"] if not is_quantized or _WEIGHTS.search(name)
    }
    expected = (
        f"cannot load '{path}': expected the tensors of a {type(model).__name__} with the sizes in"
        " its config.json"
    )
    advice = "use a complete checkpoint of this architecture, or correct config.json"
    if missing:
        unknown = loading_info["unexpected_keys"]
        others = f" and {len(unknown)} with other names ({_named(unknown)})" if unknown else ""
        raise UsageError(
            f"{expected}, got {_count(missing)} missing ({_named(missing)}){others}; {advice}"
        )
    if loading_info["mismatched_keys"]:
        shapes = [
            f"{name} is {list(shape)} instead of {list(wanted)}"
            for name, shape, wanted in loading_info["mismatched_keys"]
        ]
        raise UsageError(
            f"{expected}, got {_count(shapes)} with other shapes ({_named(shapes)}); {advice}"
        )
    surplus = set() if is_quantized else _layer_tensors(model, loading_info["unexpected_keys"])
    if surplus:
        raise UsageError(
            f"{expected}, got {_count(surplus)} more in the decoder layers ({_named(surplus)});"
            f" {advice}"
        )


def _layer_tensors(model: PreTrainedModel, names: Collection[str]) -> set[str]:
    if not names:
        return set()
    first = shallow_view.decoder_layers(model)[0]
    stack = next(path for path, module in model.named_modules() if module is first).removesuffix(
        "0"
    )
    return {name for name in names if name.startswith(stack) and not _OLD_BUFFERS.search(name)}


def _count(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) > 1)}"


def _named(names: Collection[str]) -> str:
    ordered = sorted(
        names,
        key=lambda name: [
            int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)
        ],
    )
    return ", ".join(ordered[:MAX_NAMES]) + (", ..." if len(ordered) > MAX_NAMES else "")
