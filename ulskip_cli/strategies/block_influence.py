"""Block influence (ShortGPT, Men et al. 2024): keep the layers that change the hidden state
most.
"""

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import option
from ulskip_cli.core.strategy import CalibrationResult, HeldOutMeasurements, SkippingStrategy


class BlockInfluence(SkippingStrategy):
    """Keep the R layers with the highest influence, `1 - mean_t cos(h_l, h_{l+1})` on held-out
    text.
    """

    scores: tuple[float, ...] | None = option(
        None, "block influence of layers 0 to N-1; null: the run measures it"
    )
    calibrated = ("scores",)
    calibrated_for = ()  # the scores rank the layers for every ratio
    stand_in = "evenly spread layers"

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the layers with the highest scores; the lower layer wins a tie."""
        scores = self.scores
        if scores is None:
            return schedule.even(num_layers, num_kept)
        if len(scores) != num_layers:
            raise UsageError(
                f"expected {num_layers} values in strategy.scores, one for each layer, got"
                f" {len(scores)}; set strategy.scores=null to measure them"
            )
        ranked = sorted(range(num_layers), key=lambda layer: (-scores[layer], layer))
        return tuple(sorted(ranked[:num_kept]))

    def calibrate(
        self, num_layers: int, num_kept: int, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Measure the scores in one pass over prompts and references."""
        return CalibrationResult(
            {"scores": [round(score, 6) for score in held_out.block_influence()]}
        )
