"""One block: skip neighbouring layers, so that a single patch corrects the hidden state (as in
ReplaceMe, arXiv:2505.02819).
"""

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import option
from ulskip_cli.core.strategy import CalibrationResult, HeldOutMeasurements, SkippingStrategy


class OneBlock(SkippingStrategy):
    """Skip N - R neighbouring layers between the first and the last layer; held-out examples decide
    which ones.
    """

    first: int | None = option(
        None, "first skipped layer; null: the run chooses it on held-out examples", ge=1
    )
    budget: int = option(12, "number of blocks whose loss the run measures", ge=1)
    calibrated = ("first",)
    calibrated_for = ("num_kept",)
    stand_in = "the middle block"

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the layers around the block, which is in the middle before a calibration."""
        firsts = first_layers(num_layers, num_kept)
        if num_kept == num_layers or not firsts:
            return schedule.even(num_layers, num_kept)
        first = firsts[len(firsts) // 2] if self.first is None else self.first
        if first not in firsts:
            raise UsageError(
                f"expected strategy.first between {firsts[0]} and {firsts[-1]}, so that {num_kept}"
                f" of {num_layers} layers with the first and the last one remain, got {first}; use"
                " strategy.first=null"
            )
        return without_block(num_layers, num_kept, first)

    def calibrate(
        self, num_layers: int, num_kept: int, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Measure blocks at even distances, then between the neighbours of the best one, until the
        budget is used.
        """
        firsts, losses = first_layers(num_layers, num_kept), dict[int, float]()
        coarse = spread(firsts, max(1, 2 * self.budget // 3))
        best = coarse[0]
        while len(losses) < min(self.budget, len(firsts)):
            left = [first for first in coarse if first not in losses]
            left = left or sorted(
                set(firsts) - losses.keys(), key=lambda first: (abs(first - best), first)
            )
            held_out.tell(len(losses) + 1, min(self.budget, len(firsts)))
            losses[left[0]] = held_out.decode_loss(without_block(num_layers, num_kept, left[0]))
            best = min(losses, key=lambda first: (losses[first], first))
        return CalibrationResult(
            {"first": best}, {"losses": {str(first): losses[first] for first in sorted(losses)}}
        )


def first_layers(num_layers: int, num_kept: int) -> list[int]:
    """Return the first layers of all blocks that leave the first and the last layer.

    >>> first_layers(6, 4)
    [1, 2, 3]
    """
    return list(range(1, num_kept))


def without_block(num_layers: int, num_kept: int, first: int) -> tuple[int, ...]:
    """Return the layers that remain if the block from layer `first` on is skipped.

    >>> without_block(6, 4, 2)
    (0, 1, 4, 5)
    """
    skipped = num_layers - num_kept
    return tuple(layer for layer in range(num_layers) if not first <= layer < first + skipped)


def spread(values: list[int], count: int) -> list[int]:
    """Return up to `count` values at even distances, the first and the last among them.

    >>> spread([1, 2, 3, 4, 5], 3), spread([1, 2], 3), spread([1, 2, 3], 1)
    ([1, 3, 5], [1, 2], [2])
    """
    if count >= len(values):
        return values
    if count == 1:
        return [values[len(values) // 2]]
    return sorted({values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)})
