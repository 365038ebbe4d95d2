"""The export of views to engines of other libraries, stored in the cache."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import cache_dir, replacing
from ulskip_cli.core.fingerprint import key
from ulskip_cli.inference.skip_adapter import GapPatch


def exportable_tensors(view: PreTrainedModel, engine: str) -> dict[str, Tensor]:
    """Return the weights of a view by name, tied weights once; raise UsageError if the view is not
    on the CPU, where the libraries decode, or has patches that are not folded.
    """
    if view.device.type != "cpu":
        raise UsageError(
            f"engine={engine} decodes on the CPU, got a model on {view.device}; set"
            " model.device=cpu"
        )
    for module in view.modules():
        if isinstance(module, GapPatch):
            raise UsageError(
                f"engine={engine} supports folded patches, got {module.kind.name} ones; use"
                " correction.kind=folded, or engine=torch"
            )
    tied = getattr(view, "_tied_weights_keys", None) if view.config.tie_word_embeddings else None
    return {name: tensor for name, tensor in view.state_dict().items() if name not in (tied or ())}


def cached_export(
    engine: str,
    tensors: Mapping[str, Tensor],
    settings: Sequence[object],
    suffix: str,
    write: Callable[[Path], None],
) -> Path:
    """Return the file or folder that `write` makes from `tensors` and `settings`, or the one of an
    earlier call.

    If `write` fails, nothing is left behind.
    """
    content = hashlib.blake2b()
    for tensor in tensors.values():
        content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    described = [(name, str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()]
    name = key(settings, described, content.hexdigest())
    target = cache_dir() / "engines" / engine / f"{name}{suffix}"
    if not target.exists():
        with replacing(target) as staging:
            write(staging)
    return target
