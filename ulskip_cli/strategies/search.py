"""Search: start from a simple schedule and swap single layers while the decode loss on held-out
examples falls.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import option
from ulskip_cli.core.strategy import CalibrationResult, HeldOutMeasurements, SkippingStrategy
from ulskip_cli.strategies.block_influence import BlockInfluence
from ulskip_cli.strategies.one_block import first_layers, spread, without_block

BLOCKS = 6  # skipped blocks from which a search with patches starts


class Search(SkippingStrategy):
    """Keep the best R layers that a search with a fixed budget finds. With correction=patch,
    patches are in place.
    """

    layers: tuple[int, ...] | None = option(
        None, "layers found by an earlier search, ascending; null: the run searches"
    )
    budget: int = option(100, "number of schedules whose loss the search measures", ge=1)
    seed: int = option(1, "seed for the order in which the search tries schedules")
    calibrated = ("layers",)
    calibrated_for = ("num_kept",)
    stand_in = "evenly spread layers, the start of the search"

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the layers found, or evenly spread layers before a search; raise UsageError if
        there are not `num_kept`.
        """
        if self.layers is None:
            return schedule.even(num_layers, num_kept)
        if len(self.layers) != num_kept:
            raise UsageError(
                f"expected {num_kept} of {num_layers} layers in strategy.layers for this ratio, got"
                f" {len(self.layers)}; change the ratio, or use strategy=custom"
            )
        return schedule.checked(num_layers, self.layers)

    def calibrate(
        self, num_layers: int, num_kept: int, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Swap one layer at a time, near layers first, and start again after each improvement until
        the budget is used.
        """
        rng, tried = random.Random(self.seed), 0

        def loss(layers: Sequence[int]) -> float:
            nonlocal tried
            tried += 1
            held_out.tell(tried, self.budget)
            return held_out.decode_loss(layers)

        best, best_loss = schedule.even(num_layers, num_kept), math.inf
        path: list[dict[str, Any]] = []
        starts = [best]
        # patches favour neighbouring gaps: one skipped block, or the layers of the least influence
        if held_out.corrects:
            influence = BlockInfluence(scores=tuple(held_out.block_influence())).kept_layers(
                num_layers, num_kept
            )
            blocks = [
                without_block(num_layers, num_kept, first)
                for first in spread(first_layers(num_layers, num_kept), BLOCKS)
            ]
            starts = list(dict.fromkeys([influence, *blocks, best]))[: self.budget]
        for start in starts:
            start_loss = loss(start)
            if start_loss < best_loss:
                best, best_loss = start, start_loss
                path.append({"tried": tried, "loss": best_loss, "layers": list(best)})
        seen = set(starts)
        while tried < self.budget:
            candidates = [layers for layers in swaps(best, num_layers, rng) if layers not in seen]
            for candidate in candidates[: self.budget - tried]:
                seen.add(candidate)
                candidate_loss = loss(candidate)
                if candidate_loss < best_loss:
                    best, best_loss = candidate, candidate_loss
                    path.append({"tried": tried, "loss": best_loss, "layers": list(best)})
                    break
            else:
                break  # no swap improves the loss, or the budget is used up
        return CalibrationResult({"layers": list(best)}, {"path": path, "tried": tried})


def swaps(kept: Sequence[int], num_layers: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Return every schedule that swaps a kept layer for a skipped one, by distance; equal distances
    are in random order.
    """
    pairs = [(out, into) for out in kept for into in range(num_layers) if into not in kept]
    rng.shuffle(pairs)
    pairs.sort(key=lambda pair: abs(pair[0] - pair[1]))
    return [tuple(sorted((set(kept) - {out}) | {into})) for out, into in pairs]
