"""Patches: a linear map behind every gap, which a run computes in closed form on held-out examples
(docs/adapters.md).
"""

from typing import Literal

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.correction import Correction, Kind
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.options import option


class Patch(Correction):
    """Patches that a run computes. Folded patches are merged into the layer before the gap and cost
    no time (arXiv:2505.02819).
    """

    is_fitted = True

    kind: Kind = option(
        "full", "full: a matrix for each gap; folded: merged into the layer before it"
    )
    responses: Literal["auto", "reference", "own", "both"] = option(
        "auto",
        "responses that patches are fitted on; auto: the full model's own answers too if the"
        " references are few",
    )

    @property
    def label(self) -> str:
        """The kind of the patches."""
        return self.kind

    def needs(self) -> frozenset[Need]:
        """Return the kind of patches that the engine has to support."""
        return frozenset({Need.FOLDED_PATCHES if self.kind == "folded" else Need.PATCHES})

    def patch_kind(self, model: ModelConfig) -> str:
        """Return the kind of the patches."""
        return self.kind
