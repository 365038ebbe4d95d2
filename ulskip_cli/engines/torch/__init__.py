"""The engine `torch`, our own loop with preallocated KV caches and, on CPUs, steps in our kernels;
and `auto`, which chooses between it and transformers.
"""

import os
import shlex
import shutil
from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING

from ulskip_cli.core.capabilities import ALL, DRAFTS, Need, remedies, texts
from ulskip_cli.core.engines import Engine
from ulskip_cli.core.environment import runs_on_cpu
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.weight_sizes import DTYPE_BYTES, WeightSizes
from ulskip_cli.engines.transformers import Transformers

if TYPE_CHECKING:
    from ulskip_cli.core.model_metadata import ModelMetadata
    from ulskip_cli.engines.base import Session

# Models whose decode steps are one call of the kernels, if their modules agree.
NATIVE_TYPES = {"llama", "mistral", "qwen2", "qwen3", "smollm3"}
BYTES_PER_FOUR_BIT_WEIGHT = 18 / 32  # bytes of a weight in 4 bits, with the scale of its group
# What reads all logits instead of the most likely token.
WHOLE_HEAD = {Need.SAMPLING, Need.EARLY_EXIT}
# What no other engine on torch supports.
METHODS = {Need.EARLY_EXIT, *DRAFTS}


def compiler() -> list[str]:
    """Return the command of the C++ compiler, or nothing without one or with ULSKIP_KERNEL=off."""
    if os.environ.get("ULSKIP_KERNEL") == "off":
        return []
    named = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "")
    return shlex.split(named)


class Torch(Engine):
    """Our own decode loop on torch, with early exit and drafts."""

    supports = ALL - {Need.BEAMS}
    decodes_outside_torch = False

    def session(self) -> "type[Session]":
        """Return the class of the sessions."""
        from ulskip_cli.engines.torch.torch_session import TorchSession

        return TorchSession

    def sizes(self, metadata: "ModelMetadata", device: str, needs: Set[Need]) -> WeightSizes | None:
        """Return the bytes that a decode step reads: those of the model or, on a CPU, of the copies
        in the kernels' layout. Greedy choices read the head in 8 bits with three floats a row.
        """
        packed = self._packed(metadata, device)
        vocab_size, hidden = metadata.vocab_size, metadata.hidden_size
        if not packed or not vocab_size or not hidden or metadata.bytes_per_weight is None:
            return metadata.weights
        is_bounded = metadata.model_type in NATIVE_TYPES and not needs & WHOLE_HEAD
        return replace(packed, head_bytes=vocab_size * (hidden + 12)) if is_bounded else packed

    def copied_bytes(self, metadata: "ModelMetadata", device: str, needs: Set[Need]) -> int:
        """Return the bytes of the copies in the kernels' layout: all weights; the head again, if
        decode steps read it in 8 bits; and all weights in 4 bits for drafts. It is 0 if no kernels
        run.
        """
        packed, read_in_step = self._packed(metadata, device), self.sizes(metadata, device, needs)
        if not packed or not read_in_step:
            return 0
        eight_bit_head = (
            read_in_step.head_bytes if read_in_step.head_bytes != packed.head_bytes else 0
        )
        draft_model = 0
        if Need.COPY_DRAFTS in needs and metadata.weights and metadata.dtype:
            draft_model = round(
                metadata.weights.total / DTYPE_BYTES[metadata.dtype] * BYTES_PER_FOUR_BIT_WEIGHT
            )
        return packed.total + eight_bit_head + draft_model

    @staticmethod
    def _packed(metadata: "ModelMetadata", device: str) -> WeightSizes | None:
        """Return the sizes in the kernels' layout, where float32 weights that were stored in
        bfloat16 take its bytes; None if the kernels do not run.
        """
        has_kernels = runs_on_cpu(device) and metadata.dtype != "float16"
        if not metadata.weights or not has_kernels or not compiler():
            return None
        is_narrow = (metadata.stored_dtype, metadata.dtype) == ("bfloat16", "float32")
        return metadata.weights.scaled(0.5, 0.5) if is_narrow else metadata.weights

    def engine_for(self, needs: Set[Need], model: object = None) -> tuple[Engine, str | None]:
        """Return this engine; raise UsageError if it does not support the model."""
        if problem := _unsupported_property(model, needs):
            methods = needs & METHODS
            refused = f"{texts(methods)} with {problem}" if methods else problem
            remedy = remedies(methods) or "engine=auto, which selects another engine"
            raise UsageError(f"engine=torch does not support {refused}; use {remedy}")
        return self, None


class Auto(Torch):
    """The engine on torch, or transformers for what our loop does not support."""

    supports = ALL

    def engine_for(self, needs: Set[Need], model: object = None) -> tuple[Engine, str | None]:
        """Return the engine of our loop, or transformers and the reason."""
        reason = texts(needs - Torch.supports) or _unsupported_property(model, needs)
        if reason and not needs & METHODS:
            return Transformers(name="transformers"), reason
        return Torch(name="torch").engine_for(needs, model)


def _unsupported_property(model: object, needs: Set[Need]) -> str | None:
    """Return the property of a model that the loop does not support, or None."""
    if model is None:
        return None
    from ulskip_cli.engines.torch.drafts import missing_for_copies
    from ulskip_cli.engines.torch.static_cache import unsupported_by_loop
    from ulskip_cli.inference.shallow_view import LENGTH_DEPENDENT, depends_on_length

    if needs & DRAFTS and depends_on_length(model):
        # All tokens of a pass are rotated for its last position, so a check of several drafts would
        # rotate all but the last otherwise than steps of one token do.
        return LENGTH_DEPENDENT
    problem = unsupported_by_loop(model)
    return problem or (missing_for_copies(model) if Need.COPY_DRAFTS in needs else None)
