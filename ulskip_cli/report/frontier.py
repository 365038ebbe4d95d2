"""The frontier: layers, engines, formats of weights, drafts and smaller models compared with one
full model.

The full model ran in `baseline_engine`, or is the `baseline_model` of smaller ones.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ulskip_cli.core.engines import formats_of
from ulskip_cli.experiments.record import MISSING, Interval, Record
from ulskip_cli.experiments.statistics import HOLDS, TITLES, Scorer, Share, shares
from ulskip_cli.report.plot_style import FAINT, MARKERS, annotate, limit_to, panels
from ulskip_cli.report.rows import done
from ulskip_cli.report.tables import Head, Section

TARGETS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
FULL, QUANTIZED, SKIPPING, BOTH = "full", "quantized", "skipping", "skipping and quantized"
SMALLER, DRAFTING, ADAPTED = "smaller model", "drafting", "skipping with an adapter"
KINDS = (FULL, QUANTIZED, SMALLER, DRAFTING, SKIPPING, ADAPTED, BOTH)
BITS_UNQUANTIZED = 16


@dataclass(frozen=True)
class Point:
    """One record of a frontier."""

    record: Record
    clock: Interval  # the speedup over the baseline
    quality: Share

    @property
    def speedup(self) -> float:
        """The speedup over the baseline."""
        return self.clock.value

    @property
    def kind(self) -> str:
        """One of KINDS."""
        if self.record.baseline_model:
            return SMALLER
        if self.record.draft_tokens:
            return DRAFTING
        record, engine, weights = (
            self.record,
            self.record.engine or "",
            self.record.engine_weights or "",
        )
        skips = len(record.kept_layers or ()) < (record.num_layers or 0) or bool(
            record.later_stages
        )
        formats = formats_of(engine)
        bits = formats[weights][0] if weights in formats else BITS_UNQUANTIZED
        quantized = bits < BITS_UNQUANTIZED or self._quantization is not None
        if skips and not quantized:
            return (
                ADAPTED if record.correction and record.correction.name == "adapter" else SKIPPING
            )
        return BOTH if skips else QUANTIZED if quantized else FULL

    @property
    def engine(self) -> str:
        """The engine and the format of its weights."""
        return " ".join(
            filter(None, [self.record.engine, self.record.engine_weights or self._quantization])
        )

    @property
    def _quantization(self) -> str | None:
        """How the weights are quantized in memory; None if only their file is, and torch computes
        with dequantized weights.
        """
        label = self.record.quantization
        return None if label and "dequantized" in label else label

    @property
    def method(self) -> str:
        """The strategy with its corrections, what drafts, or the smaller model."""
        label, draft = (
            self.record.label,
            (self.record.config.get("decoding") or {}).get("draft", "layers"),
        )
        drafters = {"ngram": "n-gram", "both": f"n-gram and {label}"}.get(draft, label)
        return {SMALLER: self.record.model or SMALLER, DRAFTING: f"{drafters} drafts"}.get(
            self.kind, label
        )

    @property
    def name(self) -> str:
        """The engine, and the method and layers unless the whole model runs."""
        return (
            self.engine
            if self.kind in (FULL, QUANTIZED)
            else f"{self.engine}, {self.method} {self.record.layers}"
        )


@dataclass(frozen=True)
class Frontier:
    """The points of one folder that share a baseline, the baseline first, then by speed."""

    baseline: Record
    points: tuple[Point, ...]
    folder: str = ""  # of the records, if other folders have frontiers too

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer()

    @cached_property
    def beaten(self) -> dict[str, tuple[Point, bool]]:
        """By id, a point that is faster and better, the fastest such one, and whether both
        intervals say so too.
        """
        beaten = {}
        for point in self.points:
            better = [rival for rival in self.points if rival is not point and _beats(rival, point)]
            if better:
                best = max(
                    better, key=lambda rival: (_sure(rival, point, self._scorer), rival.speedup)
                )
                beaten[point.record.id] = best, _sure(best, point, self._scorer)
        return beaten

    def best(self, target: float, kind: str | None = None) -> Point | None:
        """Return the point of a kind with the best quality among those that reach a speedup; None
        if there is none.
        """
        enough = [
            point for point in self.points if point.speedup >= target and kind in (None, point.kind)
        ]
        return max(enough, key=lambda point: (point.quality.share, point.speedup), default=None)

    @property
    def names(self) -> list[str]:
        """Return what all points share: the folder, the model, the task, the language pair and the
        dataset.
        """
        return list(
            filter(
                None, [self.folder, *map(self.baseline.value, ("model", "task", "pair", "dataset"))]
            )
        )

    def sections(self) -> list[Section]:
        """Make the tables of a report."""
        of = " · ".join(self.names)
        titles = (
            f"Which wins at each speedup? {of}",
            f"The best of each kind: {of}",
            f"Layers, engines and formats: {of}",
        )
        return [
            make(title)
            for make, title in zip((self.verdicts, self.targets, self.table), titles, strict=True)
        ]

    def verdicts(self, title: str) -> Section:
        """Make a table with a sentence for each target speedup in reach: the best point, and the
        next of another kind.
        """
        lines = [[f"{target:g}x", self._verdict(target)] for target in TARGETS if self.best(target)]
        note = "Undecided: the 95% interval of the difference contains zero, or is unknown."
        if caveat := self.points[-1].quality.caveat:
            note += f" {caveat[0].upper()}{caveat[1:]}."
        return Section(title, [Head("speedup"), Head("verdict")], lines, note, sentences=True)

    def _verdict(self, target: float) -> str:
        best = self.best(target)
        assert best is not None, "only targets in reach have a verdict"
        lead = f"{best.kind}: {best.name} keeps {best.quality.share:.1%} at {best.speedup:.2f}x"
        others = [
            rival for kind in KINDS if kind != best.kind and (rival := self.best(target, kind))
        ]
        if not others:
            return f"{lead}. Nothing of another kind is as fast."
        other = max(others, key=lambda point: (point.quality.share, point.speedup))
        metric = best.quality.metric
        apart = self._scorer.difference(best.record, other.record, metric)
        ends = "" if apart.low is None else f" ({apart.low:+.1f} to {apart.high:+.1f})"
        decided = "sure" if apart.verdict() == HOLDS else "undecided"
        second = f"{other.kind} ({other.name}, {other.speedup:.2f}x)"
        return (
            f"{lead}. Next: {second}, {other.quality.share:.1%}. {TITLES[metric]}"
            f" {apart.value:+.1f}{ends}: {decided}."
        )

    def table(self, title: str) -> Section:
        """Make the table of all points."""
        heads = (
            "engine",
            "method",
            "layers",
            "speedup",
            "interval",
            self.points[0].quality.title,
            "of baseline",
            "verdict",
        )
        lines = [list(self._cells(point)) for point in self.points]
        note = (
            f"Speedup and quality of every row are compared with {self.points[0].name} at full"
            " depth, in pairs and on the same examples. Beaten by: another point is faster and"
            " better; with a question mark, an interval leaves that open."
        )
        return Section(title, list(map(Head, heads)), lines, note)

    def _cells(self, point: Point) -> tuple[str, ...]:
        _, low, high = point.clock
        verdict = "front"
        if point.record.id in self.beaten:
            winner, sure = self.beaten[point.record.id]
            verdict = f"beaten by {winner.name}{'' if sure else ' ?'}"
        interval = (
            MISSING if point.record is self.baseline or low is None else f"{low:.2f} to {high:.2f}"
        )
        quality = point.quality
        return (
            *(
                point.engine,
                point.method,
                point.record.layers or MISSING,
                f"{point.speedup:.2f}",
                interval,
            ),
            *(f"{quality.value:.1f}", quality.text(), verdict),
        )

    def targets(self, title: str) -> Section:
        """Make the table of the best point of each kind at each target speedup."""
        kinds = [kind for kind in KINDS if any(point.kind == kind for point in self.points)]
        heads, lines = ("speedup", *kinds), list[list[str]]()
        for target in filter(self.best, TARGETS):
            of_kind = [self.best(target, kind) for kind in kinds]
            cells = [
                MISSING if point is None else f"{point.quality.share:.1%}" for point in of_kind
            ]
            lines.append([f"{target:g}x", *cells])
        note = (
            "Share of the baseline's score that the best measured point of each kind keeps at no"
            " less than this speedup."
        )
        return Section(title, list(map(Head, heads)), lines, note, words=1)

    def plot(self) -> Any:
        """Draw quality against speedup: a colour and a marker for each engine and format, with the
        numbers of kept layers.

        Smaller models have markers of their own.
        """
        figure, (axes,) = panels(1, 7.6, 4.8)
        limit_to(axes, [(point.speedup, 100 * point.quality.share) for point in self.points])
        front = sorted(
            (point.speedup, 100 * point.quality.share)
            for point in self.points
            if point.record.id not in self.beaten
        )
        axes.plot(
            *zip(*front, strict=True),
            color=FAINT,
            linewidth=6,
            alpha=0.3,
            zorder=1,
            solid_capstyle="round",
        )
        series = {
            point.record.id: point.engine + (f", {SMALLER}" if point.kind == SMALLER else "")
            for point in self.points
        }
        for i, label in enumerate(dict.fromkeys(series.values())):
            members = [point for point in self.points if series[point.record.id] == label]
            xs, ys = (
                [point.speedup for point in members],
                [100 * point.quality.share for point in members],
            )
            axes.plot(xs, ys, MARKERS[i % len(MARKERS)], color=f"C{i % 10}", label=label)
            for member, x, y in zip(members, xs, ys, strict=True):
                annotate(
                    axes, (member.record.layers or "").partition("/")[0], (x, y), (5, 3), fontsize=7
                )
        metric = self.points[0].quality.title
        axes.set(
            xlabel=f"decode speedup over {self.points[0].name} at full depth",
            ylabel=f"{metric}, % of the baseline",
        )
        axes.legend(title="numbers: kept layers", title_fontsize=8)
        return figure


def frontiers(records: Sequence[Record]) -> list[Frontier]:
    """Return a frontier for every full model and folder in which other engines or models are
    compared with it.
    """
    folders: dict[str, list[Record]] = defaultdict(
        list
    )  # the same run may be in several, e.g. of two machines
    for record in records:
        folders[record.folder].append(record)
    by_folder = {folder: _of_folder(members) for folder, members in folders.items()}
    several = sum(map(bool, by_folder.values())) > 1
    return [
        replace(frontier, folder=folder if several else "")
        for folder, fronts in by_folder.items()
        for frontier in fronts
    ]


def _of_folder(records: Sequence[Record]) -> list[Frontier]:
    finished = {record.id: record for record in done(records)}
    compared = [
        record for record in finished.values() if record.baseline_id in finished and record.speedup
    ]
    asked = [
        record
        for record in compared
        if record.baseline_model or record.config.get("baseline_engine")
    ]
    fronts = []
    for name in dict.fromkeys(record.baseline_id for record in asked if record.baseline_id):
        members = [record for record in compared if record.baseline_id == name]
        judged = shares(members, 1.0)
        rest = [
            Point(r, r.speedup, judged[r.key]) for r in members if r.key in judged and r.speedup
        ]
        if rest:
            score = rest[0].quality.full
            kept = replace(rest[0].quality, value=score, share=1.0, low=None, high=None)
            first = Point(finished[name], Interval(1.0, 1.0, 1.0), kept)
            fronts.append(
                Frontier(finished[name], (first, *sorted(rest, key=lambda point: point.speedup)))
            )
    return fronts


def _beats(point: Point, other: Point) -> bool:
    return point.speedup > other.speedup and point.quality.share >= other.quality.share


def _sure(point: Point, other: Point, scorer: Scorer) -> bool:
    """Return True if the intervals say that one point is faster, and not worse, than another."""
    difference = scorer.difference(point.record, other.record, point.quality.metric)
    low, high = point.clock.low, other.clock.high
    return (
        low is not None
        and high is not None
        and low > high
        and (difference.is_same or difference.verdict() == HOLDS)
    )
