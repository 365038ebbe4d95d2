"""The frontier: layers, engines, formats of weights, drafts and smaller models compared with one
full model.

The full model ran in `baseline_engine`, or is the `baseline_model` of smaller ones.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ulskip_cli.experiments.intervals import Interval
from ulskip_cli.experiments.record import MISSING, Column, Record
from ulskip_cli.experiments.settings import Key, settings
from ulskip_cli.experiments.statistics import (
    HOLDS,
    SAME,
    QualityShare,
    difference,
    shares,
    verdict,
)
from ulskip_cli.report.rows import collected, done
from ulskip_cli.report.tables import TableSection, ends

TARGETS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
FULL, QUANTIZED, SKIPPING, BOTH = "full", "quantized", "skipping", "skipping and quantized"
SMALLER, DRAFTING, ADAPTED = "smaller model", "drafting", "skipping with an adapter"
KINDS = (FULL, QUANTIZED, SMALLER, DRAFTING, SKIPPING, ADAPTED, BOTH)
BITS_UNQUANTIZED = 16
BATCH_SIZE = Key("batch_size")


@dataclass(frozen=True)
class FrontierPoint:
    """One record of a frontier."""

    record: Record
    clock: Interval  # the speedup over the baseline
    quality: QualityShare

    @property
    def speedup(self) -> float:
        """The speedup over the baseline."""
        return self.clock.value

    @property
    def rank(self) -> tuple[float, float]:
        """The quality, then the speedup, by which the best point is chosen."""
        return self.quality.share, self.speedup

    @property
    def kind(self) -> str:
        """One of KINDS."""
        record = self.record
        if record.baseline_model:
            return SMALLER
        if record.draft_tokens:
            return DRAFTING
        kept, formats = len(record.kept_layers or ()), record.config.engine.formats
        skips = kept < (record.num_layers or 0) or bool(record.later_stages)
        bits, *_ = formats.get(record.engine_weights or "", (BITS_UNQUANTIZED,))
        if bits < BITS_UNQUANTIZED or self._quantization:
            return BOTH if skips else QUANTIZED
        if record.correction and record.correction.name == "adapter" and skips:
            return ADAPTED
        return SKIPPING if skips else FULL

    @property
    def engine(self) -> str:
        """The engine and the format of its weights."""
        weights = self.record.engine_weights or self._quantization
        return " ".join(filter(None, [self.record.engine, weights]))

    @property
    def _quantization(self) -> str | None:
        """How the weights are quantized in memory; None if only their file is quantized and torch
        uses dequantized weights.
        """
        label = self.record.quantization
        return None if label and "dequantized" in label else label

    @property
    def method(self) -> str:
        """The text for the method: the strategy with its corrections, the drafter, or the smaller
        model.
        """
        return (self.record.model or SMALLER) if self.kind == SMALLER else self.record.label

    @property
    def name(self) -> str:
        """The engine, and the method and layers unless the whole model runs."""
        if self.kind in (FULL, QUANTIZED):
            return self.engine
        return f"{self.engine}, {self.method} {self.record.layers}"


@dataclass(frozen=True)
class Frontier:
    """The points of one folder that share a baseline, at any batch size. The baseline of most
    points is first; the others are sorted by speed.
    """

    points: tuple[FrontierPoint, ...]
    folder: str = ""  # of the records, if other folders have frontiers too

    @cached_property
    def beaten(self) -> dict[str, tuple[FrontierPoint, bool]]:
        """For the id of every beaten point: the fastest point that is faster and not worse, surely
        if possible, and True if the intervals confirm it.
        """
        beaten = {}
        for point in self.points:
            better = [
                (self._is_sure(rival, point), rival.speedup, i)
                for i, rival in enumerate(self.points)
                if rival.speedup > point.speedup and rival.rank[0] >= point.rank[0]
            ]
            if better:
                sure, _, i = max(better, key=lambda item: item[:2])
                beaten[point.record.id] = self.points[i], sure
        return beaten

    def _is_sure(self, point: FrontierPoint, rival: FrontierPoint) -> bool:
        """Return True if the intervals say that a point is faster, and not worse, than another."""
        low, high = point.clock.low, rival.clock.high
        if low is None or high is None or low <= high:
            return False
        better = _better_by(point, rival)
        return better == SAME or verdict(better) == HOLDS

    def best(self, target: float, *kinds: str) -> FrontierPoint | None:
        """Return the point of some kinds (of any without kinds) with the best quality among those
        that reach a speedup and are faster than the baseline by their whole interval, or None.
        """
        enough = [
            point
            for point in self.points
            if point.speedup >= target and verdict(point.clock, 1.0) == HOLDS
        ]
        able = [point for point in enough if point.kind in (kinds or KINDS)]
        return max(able, key=lambda point: point.rank, default=None)

    @property
    def names(self) -> list[str]:
        """Return what all points share: the folder, the model, the task, the language pair and the
        dataset.
        """
        keys = ("model", "task", "pair", "dataset")
        return list(filter(None, [self.folder, *map(self.points[0].record.value, keys)]))

    def sections(self) -> list[TableSection]:
        """Make the tables of a report."""
        of = " · ".join(self.names)
        return [
            self.verdicts(f"Which wins at each speedup? {of}"),
            self.targets(f"The best of each kind: {of}"),
            self.table(f"Layers, engines and formats: {of}"),
        ]

    def verdicts(self, title: str) -> TableSection:
        """Make a table with a sentence for each target speedup that was reached: the best point,
        and the best of another kind.
        """
        best = [(target, point) for target in TARGETS if (point := self.best(target))]
        lines = [[f"{target:g}x", self._verdict(target, point)] for target, point in best]
        note = (
            "Undecided: the 95% interval of the difference contains zero, or is unknown. Where the"
            " answers of both sides are not stored, it comes from the rows and is wider."
        )
        if caveat := self.points[-1].quality.caveat:
            note += f" {caveat[0].upper()}{caveat[1:]}."
        return TableSection(
            title, [Column("speedup"), Column("verdict")], lines, note, sentences=True
        )

    def _verdict(self, target: float, best: FrontierPoint) -> str:
        lead = f"{best.kind}: {best.name} keeps {best.quality.share:.1%} at {best.speedup:.2f}x"
        rival = self.best(target, *(kind for kind in KINDS if kind != best.kind))
        if not rival:
            return f"{lead}. Nothing of another kind is as fast."
        better = _better_by(best, rival)
        interval = f" ({text})" if (text := ends(better, "+.1f")) else ""
        decided = "sure" if verdict(better) == HOLDS else "undecided"
        return (
            f"{lead}. Next: {rival.kind} ({rival.name}, {rival.speedup:.2f}x),"
            f" {rival.quality.share:.1%}. {best.quality.title} {better.value:+.1f}{interval}:"
            f" {decided}."
        )

    def table(self, title: str) -> TableSection:
        """Make the table of all points."""
        first = self.points[0]
        note = (
            f"Speedup and quality of every row are compared with {first.name} at full depth and the"
            " same batch size, in pairs and on the same examples. Speedup: of decoding; with"
            " prompt: of reading the prompt and decoding. Beaten by: another point is faster and"
            " better; with a question mark, an interval leaves that open."
        )
        batch_sizes = {point.record.batch_size for point in self.points}
        columns = [
            Column("engine", "", "engine"),
            Column("method", "", "method"),
            Column("layers", "", "record.layers"),
            *[Column("batch", "", "record.batch_size")] * (len(batch_sizes) > 1),
            Column("speedup", ".2f", "speedup"),
            Column("interval", "", lambda point: None if point is first else ends(point.clock)),
            Column("with prompt", ".2f", "record.end_to_end_speedup"),
            Column(first.quality.title, ".1f", "quality.value"),
            Column("of baseline", "", lambda point: point.quality.text()),
            Column("verdict", "", self._fate),
        ]
        return TableSection.of(title, self.points, columns, note)

    def _fate(self, point: FrontierPoint) -> str:
        winner, sure = self.beaten.get(point.record.id, (None, True))
        return f"beaten by {winner.name}{'' if sure else ' ?'}" if winner else "front"

    def targets(self, title: str) -> TableSection:
        """Make the table of the best point of each kind at each target speedup."""
        kinds = sorted({point.kind for point in self.points}, key=KINDS.index)
        lines = []
        for target in filter(self.best, TARGETS):
            best = [self.best(target, kind) for kind in kinds]
            cells = [f"{point.quality.share:.1%}" if point else MISSING for point in best]
            lines.append([f"{target:g}x", *cells])
        note = (
            "Share of the baseline's score that the best measured point of each kind keeps at no"
            " less than this speedup."
        )
        return TableSection(title, list(map(Column, ("speedup", *kinds))), lines, note, words=1)


def _better_by(point: FrontierPoint, rival: FrontierPoint) -> Interval:
    """Return by how much the quality of a point is better than that of another one."""
    return difference(point.record, rival.record, point.quality.metric)


def frontiers(records: Sequence[Record]) -> list[Frontier]:
    """Return a frontier for every full model and folder in which other engines or models are
    compared with it.
    """
    # The same run may be in several folders, e.g. of two machines.
    folders = collected(done(records), lambda record: record.folder)
    return [
        Frontier(points, folder if len(folders) > 1 else "")
        for folder, members in folders.items()
        for points in _points(members)
    ]


def _points(records: Sequence[Record]) -> Iterator[tuple[FrontierPoint, ...]]:
    """Group the records with a speedup by their baselines, which may differ in batch size, and
    yield the points of each group: first its most frequent baseline, then the others from slow to
    fast. A group in which no record names another engine or model as baseline is left out.
    """
    finished = {record.id: record for record in records}
    compared = [
        row
        for row in finished.values()
        if row.speedup and row.baseline_id in finished and not row.has_two_depths
    ]

    def baseline(record: Record) -> str:
        values = settings(finished[record.baseline_id or ""])
        return repr(sorted((key, value) for key, value in values.items() if key != BATCH_SIZE))

    for members in collected(compared, baseline).values():
        (baseline_id, _), *_ = Counter(record.baseline_id or "" for record in members).most_common()
        judged = shares(members, 1.0)
        points = [
            FrontierPoint(record, record.speedup, judged[record.key])
            for record in members
            if record.key in judged and record.speedup
        ]
        if points and any(row.config.has_other_baseline for row in members):
            quality = points[0].quality
            kept = replace(quality, value=quality.full, share=1.0, low=None, high=None)
            first = FrontierPoint(finished[baseline_id], Interval(1.0, 1.0, 1.0), kept)
            yield first, *sorted(points, key=lambda point: point.speedup)
