"""The engine on torch: our own loop with preallocated KV caches, packed weights, CPU kernels and
compiled steps.
"""

from collections.abc import Set
from typing import TYPE_CHECKING, ClassVar

from ulskip_cli.core.capabilities import ALL, Need
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.engines import Engine
from ulskip_cli.core.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Torch(Engine):
    """Our own decode loop on torch: drafts, early exit, compiled steps."""

    supports: ClassVar[frozenset[Need]] = ALL - {
        Need.BEAMS,
        Need.STOP_STRINGS,
        Need.GENERATE_ARGUMENTS,
    }
    is_runtime = False
    session = "ulskip_cli.engines.torch.session:TorchSession"

    def choose(self, model: "PreTrainedModel", decoding: DecodingConfig) -> tuple[str, str | None]:
        """Return this engine; raise UsageError if it does not support the model or `decoding`."""
        if reason := self.unsupported_reason(model, decoding):
            raise UsageError(
                f"engine=torch is not supported with {reason}; engine=auto selects another"
            )
        return "torch", None

    def unsupported_reason(self, model: "PreTrainedModel", decoding: DecodingConfig) -> str | None:
        """Return the property of a model or the option that this engine does not support, or
        None.
        """
        from ulskip_cli.engines.torch import session

        return session.unsupported_reason(model, decoding)


class Auto(Torch):
    """The engine on torch, or transformers for options that the former does not support."""

    supports: ClassVar[frozenset[Need]] = ALL

    def choose(self, model: "PreTrainedModel", decoding: DecodingConfig) -> tuple[str, str | None]:
        """Return the engine that decodes, and the reason if it is transformers."""
        reason = self.unsupported_reason(model, decoding)
        return ("transformers" if reason else "torch"), reason

    def supported(self, needs: Set[Need]) -> frozenset[Need]:
        """Return what is supported by the engine that decodes requests with these needs."""
        from ulskip_cli.engines.transformers import Transformers

        return Torch.supports if needs <= Torch.supports else Transformers.supports
