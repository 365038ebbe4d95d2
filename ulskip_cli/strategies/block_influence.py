"""Block influence (ShortGPT, Men et al. 2024): keep the layers that change the hidden state most."""

from dataclasses import dataclass
from typing import ClassVar

from ulskip_cli.core.config_schema import option
from ulskip_cli.core.errors import UsageError
from ulskip_cli.strategies import CalibrationResult, HeldOutMeasurements, schedule
from ulskip_cli.strategies.patching import SkippingOptions


@dataclass(frozen=True)
class BlockInfluence(SkippingOptions):
    """Keep the R layers with the highest influence, `1 - mean_t cos(h_l, h_{l+1})` on held-out text."""

    scores: list[float] = option(list, "block influence of layers 0 to N-1; empty: the run measures it")
    follows_ratio: ClassVar[bool] = True
    calibrated_for: ClassVar[tuple[str, ...]] = ()
    stand_in: ClassVar[str] = "evenly spread layers"
    num_kept = staticmethod(schedule.num_kept)

    @property
    def is_calibrated(self) -> bool:
        """True if the scores have values."""
        return bool(self.scores)

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the layers with the highest scores; the lower layer wins a tie."""
        if not self.scores:
            return schedule.even(num_layers, num_kept)
        if len(self.scores) != num_layers:
            raise UsageError(
                f"expected {num_layers} values in strategy.scores, one for each layer, got {len(self.scores)}; "
                "set strategy.scores=[] to measure them"
            )
        ranked = sorted(range(num_layers), key=lambda layer: (-self.scores[layer], layer))
        return tuple(sorted(ranked[:num_kept]))

    def calibrate(self, num_layers: int, num_kept: int, held_out: HeldOutMeasurements) -> CalibrationResult:
        """Measure the scores in one pass over prompts and references."""
        return CalibrationResult({"scores": [round(score, 6) for score in held_out.block_influence()]})
