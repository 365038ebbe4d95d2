"""No correction: hidden states pass over skipped layers as they are."""

from ulskip_cli.core.correction import Correction


class NoCorrection(Correction):
    """No correction."""
