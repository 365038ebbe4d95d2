"""The engines on torch: our own loop with preallocated KV caches and, on CPUs, steps in our
kernels; early exit and drafts in this loop.
"""

import os
import shlex
import shutil
from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING

from ulskip_cli.core.capabilities import ALL, DRAFTS, Need, texts
from ulskip_cli.core.engines import Engine
from ulskip_cli.core.environment import runs_on_cpu
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.weight_sizes import WeightSizes
from ulskip_cli.engines.transformers import Transformers

if TYPE_CHECKING:
    from ulskip_cli.core.model_metadata import ModelMetadata

# Models whose decode steps are one call of the kernels, if their modules agree.
NATIVE_TYPES = {"llama", "mistral", "qwen2", "qwen3", "smollm3"}
# What reads all logits instead of the most likely token.
WHOLE_HEAD = {Need.SAMPLING, Need.EARLY_EXIT}


def compiler() -> list[str]:
    """Return the command of the C++ compiler, or nothing without one or with ULSKIP_KERNEL=off."""
    if os.environ.get("ULSKIP_KERNEL") == "off":
        return []
    named = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "")
    return shlex.split(named)


class Torch(Engine):
    """Our own decode loop on torch. Requests that need early exit or drafts are decoded by the
    engines of these methods.
    """

    supports = ALL - {Need.BEAMS}
    is_runtime = False
    session = "ulskip_cli.engines.torch.session:TorchSession"

    def sizes(self, metadata: "ModelMetadata", device: str, needs: Set[Need]) -> WeightSizes | None:
        """Return the bytes that a decode step reads: those of the model or, on a CPU, of the copies
        in the kernels' layout. Greedy choices read the head in 8 bits with three floats a row.
        """
        packed = self._packed(metadata, device)
        vocab_size, hidden = metadata.vocab_size, metadata.hidden_size
        if not packed or not vocab_size or not hidden or metadata.weight_bytes is None:
            return metadata.weights
        is_screened = metadata.model_type in NATIVE_TYPES and not needs & WHOLE_HEAD
        return replace(packed, head=vocab_size * (hidden + 12)) if is_screened else packed

    def copied_bytes(self, metadata: "ModelMetadata", device: str, needs: Set[Need]) -> int:
        """Return the bytes of the copies in the kernels' layout; a head in 8 bits is made beside
        the packed head.
        """
        packed, read = self._packed(metadata, device), self.sizes(metadata, device, needs)
        if not packed or not read:
            return 0
        return packed.total + (read.head if read.head != packed.head else 0)

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
        """Return the engine of the loop that decodes requests with these needs."""
        engine, remedy = Torch(name="torch"), "engine=auto, which selects another engine"
        if Need.EARLY_EXIT in needs:
            engine, remedy = EarlyExit(name="early_exit"), Need.EARLY_EXIT.remedy
        elif needs & DRAFTS:
            engine, remedy = Speculative(name="speculative"), Need.LOOK_UPS.remedy
        if problem := _problem(model, needs):
            raise UsageError(f"{engine.name} decoding does not support {problem}; use {remedy}")
        return engine, None


class EarlyExit(Torch):
    """Decode steps that end at the layer whose prediction is confident enough."""

    session = "ulskip_cli.engines.early_exit:EarlyExitSession"


class Speculative(Torch):
    """Drafts that the full model checks in the loop."""

    session = "ulskip_cli.engines.torch.session:SpeculativeSession"


class Auto(Torch):
    """The engine on torch, or transformers for what our loop does not support."""

    supports = ALL

    def engine_for(self, needs: Set[Need], model: object = None) -> tuple[Engine, str | None]:
        """Return the engine of our loop, or transformers and the reason."""
        missing = texts(needs - Torch.supports)
        reason = missing or _problem(model, needs)
        # Only torch has these two methods, so its engines refuse the request.
        if reason and not needs & {Need.EARLY_EXIT, *DRAFTS}:
            return Transformers(name="transformers"), reason
        return super().engine_for(needs, model)


def _problem(model: object, needs: Set[Need]) -> str | None:
    """Return the property of a model that the loop does not support, or None."""
    if model is None:
        return None
    from ulskip_cli.engines.torch.static_cache import unsupported_by_loop
    from ulskip_cli.inference.shallow_view import LENGTH_DEPENDENT, depends_on_length

    if needs & DRAFTS and depends_on_length(model):
        return LENGTH_DEPENDENT  # a check of several tokens rotates them otherwise than steps
    return unsupported_by_loop(model)
