"""The interface of corrections, which repair the hidden states after skipped layers in decode
steps.
"""

from collections.abc import Collection
from typing import ClassVar, Literal

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.options import Choice
from ulskip_cli.core.schedule import Layers

Kind = Literal["full", "folded"]


def patch_parameters(kind: str, hidden_size: int) -> int:
    """Return the number of parameters of one patch that a decode step reads; a folded patch adds
    none.

    >>> [patch_parameters(kind, 10) for kind in ("full", "folded", "none")]
    [110, 0, 0]
    """
    return (hidden_size + 1) * hidden_size if kind == "full" else 0


class Correction(Choice):
    """A correction of hidden states. The base class corrects nothing."""

    is_fitted: ClassVar[bool] = False  # a run fits it on held-out examples

    @property
    def label(self) -> str:
        """The name in tables, or nothing without a correction."""
        return ""

    def needs(self) -> frozenset[Need]:
        """Return what the correction needs of engines and commands."""
        return frozenset()

    def patch_kind(self, model: ModelConfig) -> str:
        """Return the kind of the patches, or "none"; raise UsageError if the model does not support
        the correction.
        """
        return "none"

    def folder_for(self, model: ModelConfig, kept_sets: Collection[Layers]) -> str | None:
        """Return the folder of the skip adapter that corrects these layers, or None if there is
        none to load.

        Raises UsageError if the correction has adapters, but none for these layers.
        """
        return None

    def fingerprint(self) -> str:
        """Return a string that identifies the weights of the correction; empty for a correction
        without weights.
        """
        return ""
