"""The export of a view for another library, and its cache on disk."""

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.cache import cache_dir
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference.gap_patch import GapPatch


def exportable_tensors(view: PreTrainedModel, engine: str) -> dict[str, Tensor]:
    """Return the weights of a view by name, tied ones once; raise UsageError if the view has
    patches that do not fold.
    """
    kinds = {module.kind for module in view.modules() if isinstance(module, GapPatch)}
    if kinds:
        raise UsageError(
            f"engine={engine} supports patches of kind folded, got {', '.join(sorted(kinds))}; use"
            " correction.kind=folded, or engine=torch"
        )
    tied = (
        set(getattr(view, "_tied_weights_keys", None) or ())
        if view.config.tie_word_embeddings
        else set()
    )
    return {name: tensor for name, tensor in view.state_dict().items() if name not in tied}


def cached_export(
    engine: str,
    tensors: Mapping[str, Tensor],
    settings: Sequence[Any],
    suffix: str,
    write: Callable[[Path], None],
) -> Path:
    """Return the file or folder that `write` makes from `tensors` and `settings`; an earlier one is
    used again.

    If `write` fails, nothing is left behind.
    """
    key = hashlib.blake2b(repr(list(settings)).encode(), digest_size=10)
    for name, tensor in tensors.items():
        key.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        key.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    target = cache_dir() / "engines" / engine / f"{key.hexdigest()}{suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f"{target.name}.{time.time_ns()}.part")
        try:
            write(staging)
            staging.replace(target)
        finally:
            if staging.is_dir():
                shutil.rmtree(staging)
            else:
                staging.unlink(missing_ok=True)
    return target
