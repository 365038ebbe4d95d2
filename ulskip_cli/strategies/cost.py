"""What skipping should buy: decoding time follows the bytes of weights that a step reads. Imports no torch."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.strategies.schedule import MIN_KEPT

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
LINE_ERROR = 1.05
_LOOKED_UP = ("embed", "wte", "wpe", "position")  # tables of which a step reads one row


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of weights that a decode step reads at batch 1.

    Attributes:
        head: h, the final norm and the output head.
        layers: l of every decoder layer.
    """

    head: int
    layers: tuple[int, ...]

    def predicted_speedup(self, kept: Sequence[int], heads: int = 1) -> float:
        """S = (h + sum of all layers) / (h + sum of the kept layers).

        Args:
            kept: layers that a step runs.
            heads: how often it runs the final norm and the head.
        """
        return (self.head + sum(self.layers)) / (heads * self.head + sum(self.layers[i] for i in kept))

    def staged_speedup(self, steps: Sequence[tuple[int, Sequence[int]]]) -> float:
        """The same over steps of several kinds.

        Args:
            steps: how many of each, and the layers that they keep.
        """
        total = sum(count for count, _ in steps)
        return total / sum(count / self.predicted_speedup(kept) for count, kept in steps)

    def num_kept(
        self, target_speedup: float, kept_layers: Callable[[int], Sequence[int]], heads: Callable[[int], int] = lambda count: 1
    ) -> int:
        """The largest R whose schedule is predicted to reach the target.

        Args:
            target_speedup: r >= 1.
            kept_layers: the strategy's schedule for a count.
            heads: how often its steps run the head.

        Raises:
            UsageError: not even two layers reach it; the head's share says why.
        """
        if not math.isfinite(target_speedup) or target_speedup < 1:
            raise UsageError(f"expected ratio >= 1, got {target_speedup:g}")
        for count in range(len(self.layers), MIN_KEPT - 1, -1):
            if self.predicted_speedup(kept_layers(count), heads(count)) >= target_speedup - 1e-9:
                return count
        highest = math.floor(self.predicted_speedup(kept_layers(MIN_KEPT), heads(MIN_KEPT)) * 100) / 100
        share = self.head / (self.head + sum(self.layers))
        raise NotApplicable(
            f"ratio {target_speedup:g} is out of reach by cost: the highest reachable ratio is {highest:g}, "
            f"since the head alone is {share:.0%} of the bytes that a full step reads"
        )


@dataclass(frozen=True)
class LatencyFit:
    """What a decode step takes on this machine, as a straight line over the number of layers.

    Attributes:
        num_layers: N.
        fixed_seconds: of a step, whatever it keeps: head, embedding, the loop itself.
        layer_seconds: of every kept layer.
        step_seconds: what was measured, by number of kept layers.
    """

    num_layers: int
    fixed_seconds: float
    layer_seconds: float
    step_seconds: Mapping[int, float]

    @classmethod
    def of(cls, num_layers: int, step_seconds: Mapping[int, float]) -> "LatencyFit":
        """Least squares over at least two counts."""
        counts, seconds = list(step_seconds), list(step_seconds.values())
        count_mean, seconds_mean = sum(counts) / len(counts), sum(seconds) / len(seconds)
        spread = sum((count - count_mean) ** 2 for count in counts)
        slope = sum((c - count_mean) * (s - seconds_mean) for c, s in zip(counts, seconds, strict=True)) / spread
        return cls(num_layers, seconds_mean - slope * count_mean, slope, dict(step_seconds))

    @property
    def residuals(self) -> dict[int, float]:
        """Measured less fitted, as a share of the fitted, by number of kept layers."""
        return {count: seconds / self._at(count) - 1 for count, seconds in self.step_seconds.items()}

    def share(self, depth: float) -> float:
        """Of a full step's time that a step of so many layers takes."""
        return self._at(depth) / self._at(self.num_layers)

    def depth(self, target_speedup: float, offset: float = 0.0) -> float:
        """The number of layers, whole or not, whose steps are so much faster than full ones; at least 2, at most N.

        Args:
            target_speedup: r >= 1.
            offset: what a step's share of the full time was seen to be above the line.
        """
        full = self._at(self.num_layers)
        depth = ((1 / target_speedup - offset) * full - self.fixed_seconds) / self.layer_seconds
        return min(float(self.num_layers), max(float(MIN_KEPT), depth))

    def check(self, target_speedup: float) -> None:
        """Refuse a target that two layers miss by more than the line may err.

        Raises:
            UsageError: the fixed share says why.
        """
        if not math.isfinite(target_speedup) or target_speedup < 1:
            raise UsageError(f"expected ratio >= 1, got {target_speedup:g}")
        highest = 1 / self.share(MIN_KEPT)
        if target_speedup > highest * LINE_ERROR:
            raise NotApplicable(
                f"ratio {target_speedup:g} is out of reach by latency: the highest reachable ratio is {highest:.2f}, since "
                f"{self.share(0):.0%} of a full step's time does not depend on its layers (the head, the loop)"
            )

    def _at(self, count: float) -> float:
        return max(1e-12, self.fixed_seconds + self.layer_seconds * count)


def drafting_speedup(acceptance: float, draft_tokens: int, draft_cost: float) -> float:
    """What drafting should buy at batch 1 where a check of several tokens costs as much as a step (Sec. 3, arXiv:2211.17192).

    Args:
        acceptance: the chance that a draft is accepted when those before it were.
        draft_tokens: k, drafts to a check.
        draft_cost: a drafting step's share of a full step.

    >>> round(drafting_speedup(0.8, 4, 0.5), 2), drafting_speedup(1, 4, 0.25)
    (1.12, 2.5)
    """
    tokens = sum(acceptance**i for i in range(draft_tokens + 1))  # (1 - a^(k+1)) / (1 - a)
    return tokens / (draft_tokens * draft_cost + 1)


def sort_weight_sizes(tensors: Mapping[str, tuple[Sequence[int], int]], num_layers: int, vocab_size: int) -> WeightSizes | None:
    """Sort a checkpoint's tensors into layers and head.

    Args:
        tensors: (shape, bytes) by name; a tied head may be listed or not.
        num_layers: N.
        vocab_size: the rows of the embedding and of the head; where both are listed one is the head.

    Returns:
        None where the names show no stack of N layers.
    """
    stacks: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    outside: dict[str, tuple[Sequence[int], int]] = {}
    for name, (shape, size) in tensors.items():
        match = _LAYER.search(name)
        if match:
            stacks[name[: match.start()]][int(match[1])] += size
        else:
            outside[name] = (shape, size)
    full = [layers for layers in stacks.values() if sorted(layers) == list(range(num_layers))]
    tables = [size for shape, size in outside.values() if len(shape) == 2 and vocab_size in shape]
    if len(full) != 1 or not tables:
        return None
    rest = sum(
        size
        for name, (shape, size) in outside.items()
        if not (len(shape) == 2 and (vocab_size in shape or any(part in name for part in _LOOKED_UP)))
    )
    return WeightSizes(head=min(tables) + rest, layers=tuple(full[0][i] for i in range(num_layers)))
