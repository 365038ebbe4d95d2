"""A searched schedule: from even spacing, swaps of one layer for another that lower the decode loss on held-out examples."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ulskip_cli.core.errors import UsageError
from ulskip_cli.strategies import CalibrationResult, HeldOutMeasurements, schedule


@dataclass(frozen=True)
class Search:
    """Keep the best R layers that a fixed number of tries found.

    Attributes:
        layers: found before; empty: searched.
        budget: schedules whose loss is measured, the even one included.
        seed: of the order of tries.
    """

    layers: list[int] = field(default_factory=list)
    budget: int = 100
    seed: int = 1
    follows_ratio: ClassVar[bool] = True
    calibrated_for: ClassVar[tuple[str, ...]] = ("num_kept",)
    stand_in: ClassVar[str] = "evenly spread layers, where the search starts"

    def __post_init__(self) -> None:
        """Refuse a search that tries nothing."""
        if self.budget < 1:
            raise UsageError(f"expected strategy.budget >= 1, got {self.budget}")

    @property
    def is_calibrated(self) -> bool:
        """Whether the layers are known."""
        return bool(self.layers)

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """floor(N / r), as for every static strategy."""
        return schedule.num_kept(num_layers, target_speedup)

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """What was found; even spacing where nothing was yet.

        Raises:
            UsageError: another number was found.
        """
        if not self.layers:
            return schedule.even(num_layers, num_kept)
        if len(self.layers) != num_kept:
            raise UsageError(
                f"expected {num_kept} of {num_layers} layers in strategy.layers, which is what the ratio asks for, got "
                f"{len(self.layers)}; strategy=custom keeps any number"
            )
        return schedule.checked(num_layers, self.layers)

    def calibrate(self, num_layers: int, num_kept: int, held_out: HeldOutMeasurements) -> CalibrationResult:
        """Search; near swaps are tried before far ones, each in random order, and anew after every gain."""
        rng, tried = random.Random(self.seed), 0

        def loss(layers: Sequence[int]) -> float:
            nonlocal tried
            tried += 1
            held_out.tell(tried, self.budget)
            return held_out.decode_loss(layers)

        best = schedule.even(num_layers, num_kept)
        best_loss = loss(best)
        path = [{"tried": tried, "loss": best_loss, "layers": list(best)}]
        seen = {best}
        while tried < self.budget:
            candidates = [one for one in swaps(best, num_layers, rng) if one not in seen]
            for candidate in candidates[: self.budget - tried]:
                seen.add(candidate)
                candidate_loss = loss(candidate)
                if candidate_loss < best_loss:
                    best, best_loss = candidate, candidate_loss
                    path.append({"tried": tried, "loss": best_loss, "layers": list(best)})
                    break
            else:
                break  # no swap helps, or none is left to try
        return CalibrationResult({"layers": list(best)}, {"path": path, "tried": tried})


def swaps(kept: Sequence[int], num_layers: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Every schedule with one layer exchanged for a skipped one, those with a near one first, in random order otherwise."""
    pairs = [(out, into) for out in kept for into in range(num_layers) if into not in kept]
    rng.shuffle(pairs)
    pairs.sort(key=lambda pair: abs(pair[0] - pair[1]))
    return [tuple(sorted((set(kept) - {out}) | {into})) for out, into in pairs]
