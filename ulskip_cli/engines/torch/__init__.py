"""The engine on torch: our own loop with preallocated KV caches, packed weights, CPU kernels and
compiled steps.
"""

from collections.abc import Set
from typing import ClassVar

from ulskip_cli.core.capabilities import ALL, Need
from ulskip_cli.core.engines import Engine


class Torch(Engine):
    """Our own decode loop on torch: drafts, early exit, compiled steps."""

    supports: ClassVar[frozenset[Need]] = ALL - {
        Need.BEAMS,
        Need.STOP_STRINGS,
        Need.GENERATE_ARGUMENTS,
    }
    is_runtime = False
    session = "ulskip_cli.engines.torch.session:TorchSession"


class Auto(Torch):
    """The engine on torch, or transformers for options that the former does not support."""

    supports: ClassVar[frozenset[Need]] = ALL

    def supported(self, needs: Set[Need]) -> frozenset[Need]:
        """Return what is supported by the engine that decodes requests with these needs."""
        from ulskip_cli.engines.transformers import Transformers

        return Torch.supports if needs <= Torch.supports else Transformers.supports
