"""The engines on torch: our own loop with preallocated KV caches and, on CPUs, steps in our
kernels; early exit and drafts in this loop.
"""

from collections.abc import Set
from typing import TYPE_CHECKING

from ulskip_cli.core.capabilities import ALL, TOGETHER, Need, texts
from ulskip_cli.core.engines import Engine
from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines.transformers import Transformers

if TYPE_CHECKING:
    from ulskip_cli.engines.base import EngineSession, Room, Views


class Torch(Engine):
    """Our own decode loop on torch. Requests that need early exit or drafts are decoded by the
    engines of these methods.
    """

    supports = ALL - {Need.BEAMS, Need.STOP_STRINGS}
    is_runtime = False
    session = "ulskip_cli.engines.torch.session:TorchSession"

    def engine_for(self, needs: Set[Need], model: object = None) -> tuple[Engine, str | None]:
        """Return the engine of the loop that decodes requests with these needs."""
        engine, remedy = Torch(name="torch"), "engine=auto, which selects another engine"
        if Need.EARLY_EXIT in needs:
            engine, remedy = EarlyExit(name="early_exit"), Need.EARLY_EXIT.remedy
        elif Need.DRAFTS in needs:
            engine, remedy = Speculative(name="speculative"), Need.DRAFTS.remedy
        if problem := _problem(model, needs):
            raise UsageError(f"{engine.name} decoding does not support {problem}; use {remedy}")
        return engine, None


class EarlyExit(Torch):
    """Decode steps that end at the layer whose prediction is confident enough."""

    supports = Torch.supports & TOGETHER[Need.EARLY_EXIT]
    session = "ulskip_cli.engines.early_exit:EarlyExitSession"


class Speculative(Torch):
    """Drafts that the full model checks in the loop."""

    supports = Torch.supports & TOGETHER[Need.DRAFTS]

    def open(self, views: "Views", room: "Room") -> "EngineSession":
        """Return a session of the full model, whatever view drafts."""
        session: EngineSession = super().open(views.at_full_depth(), room)
        return session


class Auto(Torch):
    """The engine on torch, or transformers for what our loop does not support."""

    supports = ALL

    def engine_for(self, needs: Set[Need], model: object = None) -> tuple[Engine, str | None]:
        """Return the engine of our loop, or transformers and the reason."""
        missing = texts(needs - Torch.supports)
        reason = missing or _problem(model, needs)
        if reason and not needs & {Need.EARLY_EXIT, Need.DRAFTS}:
            return Transformers(name="transformers"), reason
        return super().engine_for(needs, model)


def _problem(model: object, needs: Set[Need]) -> str | None:
    """Return the property of a model that the loop does not support, or None."""
    if model is None:
        return None
    from ulskip_cli.engines.torch.session import unsupported_by_loop
    from ulskip_cli.inference.shallow_view import LENGTH_DEPENDENT, depends_on_length

    if Need.DRAFTS in needs and depends_on_length(model):
        return LENGTH_DEPENDENT  # a check of several tokens rotates them otherwise than steps
    return unsupported_by_loop(model)
