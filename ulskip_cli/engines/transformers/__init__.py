"""The engine `transformers`: its `generate` in two phases."""

from typing import TYPE_CHECKING

from ulskip_cli.core.capabilities import ALL, DRAFTS, Need
from ulskip_cli.core.engines import Engine

if TYPE_CHECKING:
    from ulskip_cli.engines.base import Session


class Transformers(Engine):
    """The `generate` method of transformers."""

    supports = ALL - DRAFTS - {Need.EARLY_EXIT}
    decodes_outside_torch = False

    def session(self) -> "type[Session]":
        """Return the class of the sessions."""
        from ulskip_cli.engines.transformers.transformers_session import TransformersSession

        return TransformersSession
