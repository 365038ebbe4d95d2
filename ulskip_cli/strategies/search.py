"""Strategies that choose layers on held-out examples: by influence, as one block, or by a
search.
"""

import math
import random
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

BLOCKS = 6  # skipped blocks from which a search with patches starts
CLUSTER_STARTS, CLUSTER_ROUNDS = 50, 20  # of k-means


class BlockInfluence(Strategy):
    """Keep the R layers with the highest influence, `1 - mean_t cos(h_l, h_{l+1})` (ShortGPT, Men
    et al. 2024, arXiv:2403.03853).
    """

    scores: tuple[float, ...] | None = option(
        None, "scores of layers 0 to N-1, of which the highest stay; null: the run measures them"
    )
    calibrated = ("scores",)
    calibrated_for = ()  # the scores rank the layers for every ratio
    stand_in = "evenly spread layers"

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers with the highest scores; the lower one wins a tie."""
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
        """Measure the scores in one pass."""
        return CalibrationResult({"scores": self.influence(held_out)})

    @staticmethod
    def influence(held_out: HeldOutMeasurements) -> list[float]:
        """Return the influence of every layer."""
        similar = held_out.state_similarity()
        return [round(1 - row[layer + 1], 6) for layer, row in enumerate(similar[:-1])]


class LoRP(BlockInfluence):
    """Skip layers whose outputs are most similar to those of their cluster (LoRP,
    arXiv:2605.27786). A layer's score is its place in the order of skipping, the same for every R.

    S_ij is the mean cosine of the outputs of layers i and j over tokens. Spectral clustering of (S
    + 1) / 2 gives 2 clusters if the locality `-log2(mean_{i<j} S_ij)` is at least 1, 3 from 0.7,
    else 4. The redundancy of a layer is its mean S to the others of its cluster. Each cluster skips
    its most redundant layer; every further layer is skipped in the cluster whose remaining layers
    have the highest mean S. The first and the last layer are skipped last.
    """

    def calibrate(
        self, request: ScheduleRequest, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Measure S in one pass, and order the layers."""
        # The output of layer l is at depth l + 1; depth 0 is the input of the first layer.
        similar = [row[1:] for row in held_out.state_similarity()[1:]]
        layers = range(request.num_layers)
        locality = -math.log2(max(mean_of_pairs(similar, layers), sys.float_info.min))
        num_clusters = 2
        if locality < 1:
            num_clusters = 3 if locality >= 0.7 else 4
        groups = clusters(similar, num_clusters)
        order = skipping_order(similar, groups)
        return CalibrationResult(
            {"scores": [order.index(layer) for layer in layers]},
            {"locality": locality, "clusters": groups},
        )


def skipping_order(similar: Sequence[Sequence[float]], groups: Sequence[Sequence[int]]) -> Layers:
    """Return all layers in LoRP's order, from their similarity [layer][layer] and clusters."""
    ends = (len(similar) - 1, 0)
    candidates = list[list[int]]()  # of each cluster, the most redundant first
    for group in groups:
        redundancy = {i: sum(similar[i][j] for j in group if i != j) for i in sorted(group)}
        ranked = sorted(redundancy, key=redundancy.__getitem__, reverse=True)
        candidates.append([layer for layer in ranked if layer not in ends])
    order = [layers.pop(0) for layers in candidates if layers]
    while any(candidates):
        means = dict[int, float]()  # by the number of a cluster that can skip a layer
        for index, group in enumerate(groups):
            if candidates[index]:
                remaining = [layer for layer in group if layer not in order]
                means[index] = mean_of_pairs(similar, remaining)
        densest = max(means, key=means.__getitem__)
        order.append(candidates[densest].pop(0))
    return (*order, *ends)


def mean_of_pairs(similar: Sequence[Sequence[float]], group: Sequence[int]) -> float:
    """Return the mean similarity of two layers of a group, -1 if it has only one."""
    pairs = [similar[i][j] for i in group for j in group if i < j]
    return sum(pairs) / len(pairs) if pairs else -1.0


def clusters(similar: Sequence[Sequence[float]], count: int) -> list[list[int]]:
    """Return up to `count` clusters of layers, ordered by their first layers: normalized spectral
    clustering with the affinity (S + 1) / 2 (von Luxburg 2007, arXiv:0711.0189).
    """
    import numpy  # not needed by plans

    affinity = (numpy.array(similar) + 1) / 2
    numpy.fill_diagonal(affinity, 0)
    root = numpy.sqrt(affinity.sum(0))  # of the degrees
    _, eigenvectors = numpy.linalg.eigh(affinity / root / root[:, None])  # [layers, layers]
    labels = _k_means(eigenvectors[:, -count:] / root[:, None], count)
    groups = {label: list[int]() for label in labels}
    for layer, label in enumerate(labels):
        groups[label].append(layer)
    return list(groups.values())


def _k_means(vectors: "NDArray[float64]", count: int) -> list[int]:
    """Return the cluster of each vector [vectors, dimensions] in the best of several starts."""
    import numpy

    best, least = numpy.zeros(len(vectors), int), math.inf
    rng = numpy.random.default_rng(0)
    for _ in range(CLUSTER_STARTS):
        centers = rng.choice(vectors, min(count, len(vectors)), replace=False)
        for _ in range(CLUSTER_ROUNDS):
            distances = ((vectors[:, None] - centers) ** 2).sum(2)  # [vectors, clusters]
            nearest = distances.argmin(1)
            for cluster in numpy.unique(nearest):  # one without vectors keeps its center
                centers[cluster] = vectors[nearest == cluster].mean(0)
        loss = distances.min(1).sum()  # to the centers before the last change
        if loss < least:
            best, least = nearest, loss
    labels: list[int] = best.tolist()
    return labels


class OneBlock(Strategy):
    """Skip N - R neighbouring layers between the first and the last one; held-out examples decide
    which.
    """

    first: int | None = option(
        None, "first skipped layer; null: the run chooses it on held-out examples", ge=1
    )
    budget: int = option(12, "number of blocks whose loss the run measures", ge=1)
    calibrated = ("first",)
    calibrated_for = ("num_kept",)
    stand_in = "the middle block"

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers around the block, in the middle before a calibration."""
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
        """Measure blocks at even distances, then neighbours of the best one, until the budget is
        used.
        """
        num_layers, num_kept = request.num_layers, request.num_kept
        if num_kept == num_layers:  # no block to choose
            return CalibrationResult({"first": 1})
        firsts = range(1, num_kept)  # possible first layers of the block
        total = min(self.budget, len(firsts))
        losses = dict[int, float]()  # by the first layer

        def measure(first: int) -> None:
            held_out.report_progress(len(losses) + 1, total)
            losses[first] = held_out.decode_loss(without_block(num_layers, num_kept, first))

        def best() -> int:
            return min(losses, key=lambda first: (losses[first], first))

        for first in spread(firsts, max(1, 2 * self.budget // 3)):
            measure(first)
        while len(losses) < total:
            near = best()
            left = set(firsts) - losses.keys()
            measure(min(left, key=lambda first: (abs(first - near), first)))
        return CalibrationResult(
            {"first": best()}, {"losses": {str(first): losses[first] for first in sorted(losses)}}
        )


def without_block(num_layers: int, num_kept: int, first: int) -> Layers:
    """Return the layers without the block from layer `first` on.

    >>> without_block(6, 4, 2)
    (0, 1, 4, 5)
    """
    skipped = num_layers - num_kept
    return tuple(layer for layer in range(num_layers) if not first <= layer < first + skipped)


def spread(values: Sequence[int], count: int) -> Sequence[int]:
    """Return up to `count` values at even distances, both ends among them.

    >>> spread([1, 2, 3, 4, 5], 3), spread([1, 2], 3), spread([1, 2, 3], 1)
    ([1, 3, 5], [1, 2], [2])
    """
    count = min(count, len(values))
    if count == 1:
        return [values[len(values) // 2]]
    return [values[i] for i in schedule.even(len(values), count)]


class Search(Strategy):
    """Keep the best R layers that a search with a fixed budget finds; with correction=patch it
    measures schedules with patches.
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
        """Return the layers found, or evenly spread layers before a search; raise UsageError if it
        was for another number.
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
        the budget is used or no swap improves the loss.
        """
        rng, losses = random.Random(self.seed), dict[Layers, float]()
        path: list[OptionValues] = []  # the improvements, for the row

        def measure(layers: Layers) -> bool:
            """Measure the loss of these layers; return True if it is the lowest so far."""
            held_out.report_progress(len(losses) + 1, self.budget)
            lowest = min(losses.values(), default=math.inf)
            try:
                loss = held_out.decode_loss(layers)
            except UsageError:  # e.g. no layer before a folded patch
                loss = math.inf
            losses[layers] = loss
            if loss < lowest:
                path.append({"tried": len(losses), "loss": loss, "layers": list(layers)})
            return loss < lowest

        for start in self._starts(request, held_out):
            measure(start)
        has_improved = True
        while has_improved and len(losses) < self.budget:
            best = min(losses, key=losses.__getitem__)
            others = swaps(best, request.num_layers, rng)
            untried = [layers for layers in others if layers not in losses]
            has_improved = False
            for layers in untried[: self.budget - len(losses)]:
                if measure(layers):
                    has_improved = True
                    break
        best = min(losses, key=losses.__getitem__)
        return CalibrationResult({"layers": list(best)}, {"path": path, "tried": len(losses)})

    def _starts(self, request: ScheduleRequest, held_out: HeldOutMeasurements) -> list[Layers]:
        """Return the schedules that are measured first. Patches favour neighbouring gaps: one
        skipped block, or the layers of the least influence.
        """
        num_layers, num_kept = request.num_layers, request.num_kept
        even = schedule.even(num_layers, num_kept)
        if not held_out.measures_with_patches:
            return [even]
        influence = BlockInfluence(scores=tuple(BlockInfluence.influence(held_out)))
        firsts = spread(range(1, num_kept), BLOCKS)
        blocks = [without_block(num_layers, num_kept, first) for first in firsts]
        starts = [influence.kept_layers(request), *blocks, even]
        return list(dict.fromkeys(starts))[: self.budget]


def swaps(kept: Sequence[int], num_layers: int, rng: random.Random) -> list[Layers]:
    """Return every schedule that exchanges one kept and one skipped layer, the nearest pairs first,
    equally near ones in random order.
    """
    pairs = [(out, into) for out in kept for into in range(num_layers) if into not in kept]
    rng.shuffle(pairs)
    pairs.sort(key=lambda pair: abs(pair[0] - pair[1]))
    return [tuple(sorted((set(kept) - {out}) | {into})) for out, into in pairs]
