"""The interface of corrections, which repair the hidden states behind skipped layers in decode
steps.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.options import Choice

Kind = Literal["full", "folded", "low_rank"]


@dataclass(frozen=True)
class PatchShape:
    """The form of the patches at the gaps of a schedule."""

    kind: str  # none, full, folded or low_rank
    rank: int = 0  # of low_rank

    def parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of one patch that a decode step reads; a folded patch
        adds none.

        >>> [PatchShape(kind, 2).parameters(10) for kind in ("full", "low_rank", "folded", "none")]
        [110, 50, 0, 0]
        """
        rows = {"none": 0, "folded": 0, "low_rank": 2 * self.rank + 1, "full": hidden_size + 1}
        return rows[self.kind] * hidden_size


NO_PATCHES = PatchShape("none")


class Correction(Choice):
    """A correction of hidden states. The base class corrects nothing."""

    is_fitted: ClassVar[bool] = False  # a run fits it on held-out examples

    @property
    def label(self) -> str:
        """The name in tables, or nothing without a correction."""
        return ""

    def canonical(self) -> Self:
        """Return an equal correction in the form that identifies results."""
        return self

    def needs(self) -> frozenset[Need]:
        """Return what the correction needs of engines and commands."""
        return frozenset()

    def patches(self, model: ModelConfig) -> PatchShape:
        """Return the form of the patches; raise UsageError if the correction does not fit the
        model.
        """
        return NO_PATCHES

    def folder_for(self, model: ModelConfig, kept_sets: Collection[tuple[int, ...]]) -> str | None:
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
