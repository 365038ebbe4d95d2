"""Schedules, the decoder layers that decode steps keep, and the rules that choose and check them.

The unified schedule of Liu, Meng and Zhou 2024 (arXiv:2404.06954) keeps R of N layers: always the
first and the last, and evenly spread layers between them. `even` rounds to the nearest layer;
`reference` rounds like the authors' published code. `ExitRule` is the early exit of CALM (Schuster
et al. 2022, arXiv:2207.07061).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ulskip_cli.core.errors import NotApplicable, UsageError, unknown

MIN_LAYERS = 3  # the first, the last, and at least one that can be skipped
MIN_KEPT = 2
Layers = tuple[int, ...]  # numbers of layers, ascending
# The threshold decays from lam to 0.9 lam; lam may exceed 1 so that 0.9 lam can be 1.
FALLS_TO = 0.9


@dataclass(frozen=True)
class Stage:
    """The layers of consecutive decode steps."""

    first_step: int  # step 0 generates the second token
    kept_layers: Layers  # ascending; fewer than in the stage before


def step_counts(stages: Sequence[Stage], steps: int) -> list[tuple[int, Layers]]:
    """Return for each stage how many of the first `steps` decode steps use it, and its layers."""
    starts = [stage.first_step for stage in stages] + [steps]
    counts = [max(0, min(end, steps) - start) for start, end in pairwise(starts)]
    return [(count, stage.kept_layers) for count, stage in zip(counts, stages, strict=True)]


def mean_kept(stages: Sequence[Stage], lengths: Sequence[int]) -> float:
    """Return the mean layers per decode step over outputs of `lengths` tokens, the first by
    prefill.

    >>> mean_kept([Stage(0, (0, 1, 2)), Stage(2, (0, 2))], [5, 1])
    2.5
    """
    layers = steps = 0
    for length in lengths:
        for count, kept in step_counts(stages, max(0, length - 1)):
            layers, steps = layers + count * len(kept), steps + count
    return layers / steps if steps else float(len(stages[0].kept_layers))


def num_kept(num_layers: int, target_speedup: float, tolerance: float = 1e-9) -> int:
    """Return R = floor(N / r), between 2 and N, or raise UsageError if even two layers are too many
    for the target.

    `tolerance` is for float division (30 / (30 / 7) is 6.999...); 0 reproduces the published code.

    >>> num_kept(30, 2.0), num_kept(30, 1.0), num_kept(32, 1.5)
    (15, 30, 21)
    """
    if num_layers < MIN_LAYERS:
        raise UsageError(
            f"expected a model with at least {MIN_LAYERS} decoder layers, got {num_layers}; use"
            " another model"
        )
    if not 1 <= target_speedup < math.inf:
        raise UsageError(
            f"expected ratio >= 1, got {target_speedup:g}; 1 keeps every layer, 2 half of them"
        )
    count = math.floor(num_layers / target_speedup + tolerance)
    if count < MIN_KEPT:
        raise NotApplicable(
            f"ratio={target_speedup:g} is out of reach for {num_layers} layers, of which at least"
            f" {MIN_KEPT} are kept; use ratio <= {num_layers / MIN_KEPT:g}"
        )
    return count


def even(num_layers: int, num_kept: int) -> Layers:
    """Return R layers spread evenly over 0..N-1, both ends included.

    >>> even(30, 6)
    (0, 6, 12, 17, 23, 29)
    """
    return tuple(round(i * (num_layers - 1) / (num_kept - 1)) for i in range(num_kept))


def reference(num_layers: int, num_kept: int) -> Layers:
    """Return the R layers that the published code of arXiv:2404.06954 picks.

    They are the first R - 1 multiples of `step = int(N / (R - 1))`, and the last layer. If much of
    the step is rounded off (N=32, R=21), they cluster at the bottom.

    >>> reference(30, 6)
    (0, 6, 12, 18, 24, 29)
    """
    step = num_layers // (num_kept - 1)
    return (0, *range(step, num_layers - 1, step)[: num_kept - 2], num_layers - 1)


def first_layer_count(prompt_layers: str) -> int | None:
    """Return K of `first:K`, and None for `all` and `kept`; raise UsageError for other texts.

    >>> first_layer_count("first:15"), first_layer_count("all")
    (15, None)
    """
    name, _, count = prompt_layers.partition(":")
    if name == "first" and count.isdecimal():
        if not int(count):
            raise UsageError("expected prompt_layers=first:K with K >= 1, got 'first:0'; use 1")
        return int(count)
    if prompt_layers not in ("all", "kept"):
        raise unknown("prompt_layers", prompt_layers, ["all", "kept", "first:K"])
    return None


def checked(num_layers: int, layers: Sequence[int]) -> Layers:
    """Return the layers; raise UsageError unless they are distinct, ascending and within 0..N-1."""
    kept = tuple(layers)
    if not kept or list(kept) != sorted(set(kept) & set(range(num_layers))):
        raise UsageError(
            f"expected ascending numbers of layers between 0 and {num_layers - 1}, got"
            f" {list(kept)}; list them, e.g. strategy.layers=[0,3,5]"
        )
    return kept


def checked_stages(num_layers: int, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages; raise UsageError unless the first begins at step 0, and each later one
    keeps some layers of the one before.
    """
    kept = [set(checked(num_layers, stage.kept_layers)) for stage in stages]
    starts = [stage.first_step for stage in stages]
    is_nested = all(later < earlier for earlier, later in pairwise(kept))
    is_ascending = all(earlier < later for earlier, later in pairwise(starts))
    if not stages or starts[0] != 0 or not is_ascending or not is_nested:
        raise UsageError(
            "expected a stage from step 0 on, and later ones that keep only layers of the stage"
            f" before, got {list(stages)}; correct `stages` of the strategy"
        )
    return tuple(stages)


@dataclass(frozen=True)
class ExitRule:
    """Depths (numbers of layers) at which a decode step may end, and the confidence that ends it,
    the difference of the two largest probabilities.
    """

    num_layers: int  # N, the depth of a step that never exits
    target_depth: int  # R, for the mean depth over decode steps
    threshold: float | None  # lam; None before calibration
    horizon: int  # T, steps over which the threshold decays
    min_exit: int = 1  # smallest depth with a check
    every: int = 1  # number of layers between two checks

    @property
    def checks(self) -> tuple[int, ...]:
        """Depths of the checks; there is none at full depth.

        >>> ExitRule(12, 6, None, 64, min_exit=3, every=4).checks
        (3, 7, 11)
        """
        return tuple(range(self.min_exit, self.num_layers, self.every))

    def threshold_at(self, step: int) -> float:
        """Return 0.9 lam + 0.1 lam exp(-4 t / T) at step t (arXiv:2207.07061); step 0 generates the
        second token.
        """
        assert self.threshold is not None, "the threshold is not calibrated"
        return FALLS_TO * self.threshold + (1 - FALLS_TO) * self.threshold * math.exp(
            -4 * step / self.horizon
        )

    def heads(self, depth: int) -> int:
        """Return how often a step of this depth runs the output head: at each check and at full
        depth, and at least once.
        """
        checked = sum(check <= depth for check in self.checks)
        return max(1, checked + (depth == self.num_layers))


@dataclass(frozen=True)
class Schedule:
    """The layers that read the prompt and those of each decode step: all that decoding knows of a
    strategy.
    """

    num_layers: int
    stages: tuple[Stage, ...]  # of decoding, each with fewer layers
    prompt_layers: str = "all"  # all, kept or first:K
    exits: ExitRule | None = None  # None without early exit

    @staticmethod
    def from_layers(num_layers: int, kept: Sequence[int], prompt_layers: str = "all") -> "Schedule":
        """Make a schedule of one stage; raise UsageError for an invalid list."""
        stages = (Stage(0, checked(num_layers, kept)),)
        return Schedule(num_layers, stages, prompt_layers)

    @property
    def full(self) -> "Schedule":
        """The schedule of the full model."""
        return self.from_layers(self.num_layers, range(self.num_layers))

    @property
    def kept_layers(self) -> Layers:
        """The layers of the first steps, ascending."""
        return self.stages[0].kept_layers

    @property
    def later_stages(self) -> tuple[Stage, ...]:
        """The stages after the first one."""
        return self.stages[1:]

    @property
    def summary(self) -> str:
        """The layers of the first stage, e.g. `6 of 12 layers`."""
        return f"{len(self.kept_layers)} of {self.num_layers} layers"

    @property
    def keeps_all(self) -> bool:
        """True if no step skips a layer."""
        return (
            len(self.kept_layers) == self.num_layers
            and not self.later_stages
            and self.exits is None
        )

    @property
    def sets_with_gaps(self) -> list[Layers]:
        """The layers of each stage that skips some, for which corrections are made."""
        return [
            stage.kept_layers for stage in self.stages if len(stage.kept_layers) < self.num_layers
        ]

    def mean_kept(self, steps: int) -> float:
        """Return the mean layers of the first `steps` decode steps; with early exit, the target
        depth.
        """
        if self.exits:
            return float(self.exits.target_depth)
        return mean_kept(self.stages, [steps + 1])

    def cached_share(self, steps: int) -> float:
        """Return the mean share of the first stage's keys and values that the first `steps` decode
        steps read.
        """
        return self.mean_kept(steps) / len(self.kept_layers)


def layer_ranges(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Group adjacent layers into half-open ranges `(start, end)`.

    >>> layer_ranges((0, 1, 4, 6, 7))
    [(0, 2), (4, 5), (6, 8)]
    """
    breaks = [(before, after) for before, after in pairwise(kept) if after != before + 1]
    starts = [kept[0], *(after for _, after in breaks)]
    ends = [*(before + 1 for before, _ in breaks), kept[-1] + 1]
    return list(zip(starts, ends, strict=True))


def listed(layers: Sequence[int]) -> str:
    """List ascending layers as ranges.

    >>> listed((0, 1, 2, 5, 7, 8))
    '0-2, 5, 7, 8'
    """
    parts = list[str]()
    for start, end in layer_ranges(layers):
        if end - start > 2:
            parts.append(f"{start}-{end - 1}")
        else:
            parts.extend(map(str, range(start, end)))
    return ", ".join(parts)
