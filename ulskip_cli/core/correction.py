"""The interface of corrections, which repair the hidden states after skipped layers in decode
steps.
"""

from collections.abc import Collection
from typing import ClassVar

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.options import Choice
from ulskip_cli.core.patches import NO_PATCHES, PatchKind
from ulskip_cli.core.schedule import Layers


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

    def patch_kind(self, model: ModelConfig) -> PatchKind:
        """Return the kind of the patches; raise UsageError if the model does not support the
        correction.
        """
        return NO_PATCHES

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
