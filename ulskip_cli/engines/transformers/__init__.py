"""The engine `transformers`: its `generate` in two phases, with support for every option."""

from typing import TYPE_CHECKING, ClassVar

from ulskip_cli.core.capabilities import ALL, Need
from ulskip_cli.core.engines import Engine

if TYPE_CHECKING:
    from ulskip_cli.engines.base import Room, Session, Views


class Transformers(Engine):
    """The `generate` method of transformers."""

    supports: ClassVar[frozenset[Need]] = ALL - {
        Need.LAYER_DRAFTS,
        Need.EARLY_EXIT,
        Need.COMPILATION,
    }
    is_runtime = False

    def open(self, views: "Views", room: "Room") -> "Session":
        """Return a session."""
        from ulskip_cli.engines.transformers.session import TransformersSession

        return TransformersSession(views)
