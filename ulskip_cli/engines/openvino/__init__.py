"""The engine `openvino`: views traced with the KV cache as states, decoded by OpenVINO on the
CPU.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ulskip_cli.core.engines import FLOATS, Engine

if TYPE_CHECKING:
    from ulskip_cli.engines.base import Room, Session, Views


class OpenVino(Engine):
    """OpenVINO."""

    formats: ClassVar[Mapping[str, tuple[float, float]]] = {
        **FLOATS,
        "int8": (8, 8),
        "int4": (4.25, 8),
    }
    modules = ("openvino",)
    install = "pip install 'ulskip[openvino]'"

    def open(self, views: "Views", room: "Room") -> "Session":
        """Export the views unless they are cached, and load them."""
        from ulskip_cli.engines.openvino.session import OpenVinoSession

        return OpenVinoSession(views, self.weights)
