"""Strategies that choose layers on held-out examples: by block influence, as one skipped block, or
by a search.
"""

import math
import random
from collections.abc import Sequence

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import option
from ulskip_cli.core.schedule import Layers
from ulskip_cli.core.strategy import (
    CalibrationResult,
    HeldOutMeasurements,
    OptionValues,
    ScheduleRequest,
    Strategy,
)

BLOCKS = 6  # skipped blocks from which a search with patches starts


class BlockInfluence(Strategy):
    """Keep the R layers with the highest influence, `1 - mean_t cos(h_l, h_{l+1})` on held-out
    text.
    """

    scores: tuple[float, ...] | None = option(
        None, "block influence of layers 0 to N-1; null: the run measures it"
    )
    calibrated = ("scores",)
    calibrated_for = ()  # the scores rank the layers for every ratio
    stand_in = "evenly spread layers"

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers with the highest scores; the lower layer wins a tie."""
        num_layers, scores = request.num_layers, self.scores
        if scores is None:
            return schedule.even(num_layers, request.num_kept)
        if len(scores) != num_layers:
            raise UsageError(
                f"expected {num_layers} values in strategy.scores, one for each layer, got"
                f" {len(scores)}; set strategy.scores=null to measure them"
            )
        ranked = sorted(range(num_layers), key=lambda layer: (-scores[layer], layer))
        return tuple(sorted(ranked[: request.num_kept]))

    def calibrate(
        self, request: ScheduleRequest, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Measure the scores in one pass over prompts and references."""
        return CalibrationResult(
            {"scores": [round(score, 6) for score in held_out.block_influence()]}
        )


class OneBlock(Strategy):
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

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers around the block, which is in the middle before a calibration."""
        num_layers, num_kept = request.num_layers, request.num_kept
        firsts = range(1, num_kept)  # possible first layers of the block
        first = firsts[len(firsts) // 2] if self.first is None else self.first
        if first not in firsts:
            raise UsageError(
                f"expected strategy.first between {firsts[0]} and {firsts[-1]}, so that {num_kept}"
                f" of {num_layers} layers with the first and the last one remain, got {first}; use"
                " strategy.first=null"
            )
        return without_block(num_layers, num_kept, first)

    def calibrate(
        self, request: ScheduleRequest, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Measure blocks at even distances, then between the neighbours of the best one, until the
        budget is used.
        """
        num_layers, num_kept = request.num_layers, request.num_kept
        if num_kept == num_layers:  # no block to choose
            return CalibrationResult({"first": 1})
        # All by the first layer of the block. Two thirds of the budget go to even distances.
        firsts, losses = range(1, num_kept), dict[int, float]()
        coarse = spread(firsts, max(1, 2 * self.budget // 3))
        best, total = coarse[0], min(self.budget, len(firsts))
        while len(losses) < total:
            left = [first for first in coarse if first not in losses]
            left = left or sorted(
                set(firsts) - losses.keys(), key=lambda first: (abs(first - best), first)
            )
            held_out.tell(len(losses) + 1, total)
            losses[left[0]] = held_out.decode_loss(without_block(num_layers, num_kept, left[0]))
            best = min(losses, key=lambda first: (losses[first], first))
        return CalibrationResult(
            {"first": best}, {"losses": {str(first): losses[first] for first in sorted(losses)}}
        )


def without_block(num_layers: int, num_kept: int, first: int) -> Layers:
    """Return the layers that remain if the block from layer `first` on is skipped.

    >>> without_block(6, 4, 2)
    (0, 1, 4, 5)
    """
    skipped = num_layers - num_kept
    return tuple(layer for layer in range(num_layers) if not first <= layer < first + skipped)


def spread(values: Sequence[int], count: int) -> Sequence[int]:
    """Return up to `count` values at even distances, the first and the last among them.

    >>> spread([1, 2, 3, 4, 5], 3), spread([1, 2], 3), spread([1, 2, 3], 1)
    ([1, 3, 5], [1, 2], [2])
    """
    count = min(count, len(values))
    if count == 1:
        return [values[len(values) // 2]]
    return [values[i] for i in schedule.even(len(values), count)]


class Search(Strategy):
    """Keep the best R layers that a search with a fixed budget finds. With correction=patch, it
    measures each schedule with patches.
    """

    layers: Layers | None = option(
        None, "layers found by an earlier search, ascending; null: the run searches"
    )
    budget: int = option(100, "number of schedules whose loss the search measures", ge=1)
    seed: int = option(1, "seed for the order in which the search tries schedules")
    calibrated = ("layers",)
    calibrated_for = ("num_kept",)
    stand_in = "evenly spread layers, the start of the search"

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers found, or evenly spread layers before a search; raise UsageError if
        the search was for another number of layers.
        """
        num_layers, num_kept = request.num_layers, request.num_kept
        if self.layers is None:
            return schedule.even(num_layers, num_kept)
        if len(self.layers) != num_kept:
            raise UsageError(
                f"expected {num_kept} of {num_layers} layers in strategy.layers for this ratio, got"
                f" {len(self.layers)}; change the ratio, or use strategy=custom"
            )
        return schedule.checked(num_layers, self.layers)

    def calibrate(
        self, request: ScheduleRequest, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Swap one layer at a time, near layers first, and start again after each improvement until
        the budget is used.
        """
        num_layers, num_kept = request.num_layers, request.num_kept
        rng, losses = random.Random(self.seed), dict[Layers, float]()
        path: list[OptionValues] = []  # the improvements, for the row

        def measure(layers: Layers) -> bool:
            """Add the loss of these layers to `losses`, and to `path` if it is the lowest, and
            return True then.
            """
            lowest = min(losses.values(), default=math.inf)
            held_out.tell(len(losses) + 1, self.budget)
            try:
                losses[layers] = loss = held_out.decode_loss(layers)
            except UsageError:  # e.g. no layer before a folded patch
                losses[layers] = loss = math.inf
            if loss >= lowest:
                return False
            path.append({"tried": len(losses), "loss": loss, "layers": list(layers)})
            return True

        starts = [schedule.even(num_layers, num_kept)]
        # patches favour neighbouring gaps: one skipped block, or the layers of the least influence
        if held_out.corrects:
            influence = BlockInfluence(scores=tuple(held_out.block_influence()))
            blocks = [
                without_block(num_layers, num_kept, first)
                for first in spread(range(1, num_kept), BLOCKS)
            ]
            starts = [influence.kept_layers(request), *blocks, *starts]
            starts = list(dict.fromkeys(starts))[: self.budget]
        for start in starts:
            measure(start)
        while len(losses) < self.budget:
            best = min(losses, key=losses.__getitem__)
            candidates = [layers for layers in swaps(best, num_layers, rng) if layers not in losses]
            for candidate in candidates[: self.budget - len(losses)]:
                if measure(candidate):
                    break  # and start again from it
            else:
                break  # no swap improves the loss, or the budget is used up
        best = min(losses, key=losses.__getitem__)
        return CalibrationResult({"layers": list(best)}, {"path": path, "tried": len(losses)})


def swaps(kept: Sequence[int], num_layers: int, rng: random.Random) -> list[Layers]:
    """Return every schedule that exchanges one kept and one skipped layer, the nearest pairs first;
    equally near ones are in random order.
    """
    pairs = [(out, into) for out in kept for into in range(num_layers) if into not in kept]
    rng.shuffle(pairs)
    pairs.sort(key=lambda pair: abs(pair[0] - pair[1]))
    return [tuple(sorted((set(kept) - {out}) | {into})) for out, into in pairs]
