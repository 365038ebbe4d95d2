"""Code for engines of other libraries: a session with a copy of each view, and the cached export of
a view.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import cache_dir, replacing
from ulskip_cli.engines.base import Views
from ulskip_cli.engines.loop import SteppingSession
from ulskip_cli.inference.skip_adapter import GapPatch

Copy = TypeVar("Copy")


class LibrarySession(SteppingSession, Generic[Copy]):
    """A session with a copy of each stage's view in another library, and a copy of the full model
    if it encodes the prompts.

    Keys and values move to a view from the full model, or from the view of the stage before.
    """

    def __init__(self, views: Views, weights: str | None, engine: str, bf16: str = "bf16") -> None:
        """Load the copies in the format `weights`, or in that of the model; raise UsageError if the
        latter is unknown. `bf16` is the format in which the library stores bfloat16.
        """
        names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: bf16}
        weights = weights or names.get(views.model.dtype)
        if weights is None:
            raise UsageError(
                f"engine={engine} does not support weights in {views.model.dtype}; use"
                " model.dtype=bfloat16"
            )
        self.weights, self.stages = weights, views.stages
        self.views = [self.load(stage.view) for stage in self.stages]
        self.view = self.views[0]  # of the current stage
        encodes = views.prompt_model is self.stages[0].view
        self.full = self.view if encodes else self.load(views.prompt_model)

    @abstractmethod
    def load(self, model: PreTrainedModel) -> Copy:
        """Return a copy of a model in the library."""

    @abstractmethod
    def move(self, source: Copy, layers: Sequence[int]) -> None:
        """Make `view` the current view; copy the keys and values of `layers` from another copy to
        it.
        """

    def start(self) -> None:
        """Continue the encoded prompts in the view of the first stage."""
        self.view = self.views[0]
        if self.full is not self.view:
            self.move(self.full, self.stages[0].kept)

    def switch(self, stage: int) -> None:
        """Continue with the view of a later stage, which takes over the keys and values of its
        layers.
        """
        self.view = self.views[stage]
        before = self.stages[stage - 1].kept
        self.move(self.views[stage - 1], [before.index(i) for i in self.stages[stage].kept])


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
    key = hashlib.blake2b(repr(list(settings)).encode(), digest_size=10)
    for name, tensor in tensors.items():
        key.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        key.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    target = cache_dir() / "engines" / engine / f"{key.hexdigest()}{suffix}"
    if not target.exists():
        with replacing(target) as staging:
            write(staging)
    return target
