"""The frontier: layers, engines, formats of weights, drafts and smaller models compared with one
full model.

The full model ran in `baseline_engine`, or is the `baseline_model` of smaller ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from ulskip_cli.experiments.intervals import Interval
from ulskip_cli.experiments.record import Column, Record
from ulskip_cli.experiments.statistics import (
    HOLDS,
    SAME,
    QualityShare,
    difference,
    is_faster,
    shares,
    verdict,
)
from ulskip_cli.report.reference import ComparedPair
from ulskip_cli.report.rows import collected, done, grouped
from ulskip_cli.report.tables import TableSection

TARGETS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
FULL, QUANTIZED, SKIPPING, BOTH = "full", "quantized", "skipping", "skipping and quantized"
SMALLER, DRAFTING, ADAPTED = "smaller model", "drafting", "skipping with an adapter"
KINDS = (FULL, QUANTIZED, SMALLER, DRAFTING, SKIPPING, ADAPTED, BOTH)
BITS_UNQUANTIZED = 16
SPEEDUP = Column("speedup", "", "{:g}x".format)


def kind_of(record: Record) -> str:
    """Return one of KINDS."""
    if record.baseline_model:
        return SMALLER
    if record.draft_tokens:
        return DRAFTING
    kept, formats = len(record.kept_layers or ()), record.config.engine.formats
    skips = kept < (record.num_layers or 0) or bool(record.later_stages)
    bits, *_ = formats.get(record.engine_weights or "", (BITS_UNQUANTIZED,))
    if bits < BITS_UNQUANTIZED or _quantization(record):
        return BOTH if skips else QUANTIZED
    if record.correction and record.correction.name == "adapter" and skips:
        return ADAPTED
    return SKIPPING if skips else FULL


def engine_of(record: Record) -> str:
    """Name the engine and the format of its weights."""
    weights = record.engine_weights or _quantization(record)
    return " ".join(filter(None, [record.engine, weights]))


def _quantization(record: Record) -> str | None:
    """Return how the weights are quantized in memory; None if only their file is quantized and
    torch uses dequantized weights.
    """
    label = record.quantization
    return None if label and "dequantized" in label else label


def method_of(record: Record) -> str:
    """Name the strategy with its corrections, the drafter, or the smaller model."""
    return record.model if record.baseline_model else record.label


def name_of(record: Record) -> str:
    """Name the engine, and the method and layers unless the whole model runs."""
    if kind_of(record) in (FULL, QUANTIZED):
        return engine_of(record)
    return f"{engine_of(record)}, {method_of(record)} {record.layers}"


def speed_of(point: QualityShare) -> float:
    """Return the speedup over the baseline."""
    return point.record.measured_speedup or 0.0


@dataclass(frozen=True)
class Frontier:
    """The points of one folder that share a baseline, at any batch size. The baseline of most
    points is first; the others are sorted by speed.
    """

    points: tuple[QualityShare, ...]
    folder: str = ""  # of the records, if other folders have frontiers too

    @cached_property
    def beaten(self) -> dict[str, tuple[QualityShare, bool]]:
        """For the id of every beaten point: the fastest point that is faster and not worse, surely
        if possible, and True if the intervals confirm it.
        """
        beaten = {}
        for point in self.points:
            better = [
                (rival, _is_sure(rival, point))
                for rival in self.points
                if speed_of(rival) > speed_of(point) and rival.share >= point.share
            ]
            if better:
                beaten[point.record.id] = max(better, key=lambda pair: (pair[1], speed_of(pair[0])))
        return beaten

    def best(self, target: float, *kinds: str) -> QualityShare | None:
        """Return the point of some kinds (of any without kinds) with the best quality, or else the
        fastest, among those that reach a speedup and are surely faster than the baseline, or None.
        """
        able = [
            point
            for point in self.points
            if speed_of(point) >= target
            and is_faster(point.record)
            and kind_of(point.record) in (kinds or KINDS)
        ]
        return max(able, key=lambda point: (point.share, speed_of(point)), default=None)

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
        note = (
            "Undecided: the 95% interval of the difference contains zero, or is unknown. Where the"
            " answers of both sides are not stored, it comes from the rows and is wider."
        )
        if caveat := self.points[-1].caveat:
            note += f" {caveat[0].upper()}{caveat[1:]}."
        columns = [SPEEDUP, Column("verdict", "", self._verdict)]
        return replace(TableSection.of(title, self.reached, columns, note), sentences=True)

    @property
    def reached(self) -> list[float]:
        """The target speedups that some point reaches."""
        return list(filter(self.best, TARGETS))

    def _verdict(self, target: float) -> str | None:
        best = self.best(target)
        if not best:
            return None
        kind, rest = kind_of(best.record), [kind for kind in KINDS if kind != kind_of(best.record)]
        lead = f"{kind}: {name_of(best.record)} keeps {best.share:.1%} at {speed_of(best):.2f}x"
        rival = self.best(target, *rest)
        if not rival:
            return f"{lead}. Nothing of another kind is as fast."
        better = difference(best.record, rival.record, best.metric)
        decided = "sure" if verdict(better) == HOLDS else "undecided"
        return (
            f"{lead}. Next: {kind_of(rival.record)} ({name_of(rival.record)},"
            f" {speed_of(rival):.2f}x), {rival.share:.1%}. {best.title} {better.text('+.1f')}:"
            f" {decided}."
        )

    def table(self, title: str) -> TableSection:
        """Make the table of all points."""
        first = self.points[0]
        note = (
            f"Speedup and quality of every row are compared with {name_of(first.record)} at full"
            " depth and the same batch size, in pairs and on the same examples. Speedup: of"
            " decoding; with prompt: of reading the prompt and decoding. Beaten by: another point"
            " is faster and better; with a question mark, an interval leaves that open."
        )
        batch_sizes = {point.record.batch_size for point in self.points}
        columns = [
            Column("engine", "", lambda point: engine_of(point.record)),
            Column("method", "", lambda point: method_of(point.record)),
            Column("layers", "", "record.layers"),
            *[Column("batch", "", "record.batch_size")] * (len(batch_sizes) > 1),
            Column("speedup", ".2f", speed_of),
            Column("interval", "", "record.interval"),
            Column("with prompt", ".2f", "record.end_to_end_speedup"),
            Column(first.title, ".1f", "value"),
            Column("of baseline", "", QualityShare.text),
            Column("verdict", "", self._fate),
        ]
        return TableSection.of(title, self.points, columns, note, words=2)

    def _fate(self, point: QualityShare) -> str:
        winner, sure = self.beaten.get(point.record.id, (None, True))
        return f"beaten by {name_of(winner.record)}{'' if sure else ' ?'}" if winner else "front"

    def targets(self, title: str) -> TableSection:
        """Make the table of the best point of each kind at each target speedup."""

        def share(target: float, kind: str) -> float | None:
            best = self.best(target, kind)
            return best.share if best else None

        note = (
            "Share of the baseline's score that the best measured point of each kind keeps at no"
            " less than this speedup."
        )
        columns = [SPEEDUP, *(Column(kind, ".1%", partial(share, kind=kind)) for kind in KINDS)]
        return TableSection.of(title, self.reached, columns, note)


def _is_sure(rival: QualityShare, point: QualityShare) -> bool:
    """Return True if the intervals say that a rival is faster than a point, and not worse."""
    pair = ComparedPair(rival.record, point.record)
    return pair.faster == HOLDS and (pair.better == HOLDS or pair.quality == SAME)


def frontiers(records: Sequence[Record]) -> list[Frontier]:
    """Return a frontier for every full model and folder in which other engines or models are
    compared with it. Full models that differ only in batch size share one.
    """
    by_key = {record.key: record for record in done(records)}
    rows_of = collected(
        (row for row in by_key.values() if row.speedup and not row.has_two_depths),
        lambda row: (row.folder, row.baseline_id or ""),
    )
    several, found = len({folder for folder, _ in by_key}) > 1, []
    for group in grouped([by_key[key] for key in rows_of if key in by_key]):
        members = [row for full in group.records for row in rows_of[full.key]]
        baseline = max(group.records, key=lambda full: len(rows_of[full.key]))
        clock = Interval(1.0, 1.0, 1.0).row("measured_speedup")
        first = baseline.replace(
            **clock, pairs=None, speedup_interval_coverage=None, baseline_id=baseline.id
        )
        judged = shares([first, *members], 1.0)
        members.sort(key=lambda row: row.measured_speedup or 0.0)
        points = [judged[row.key] for row in (first, *members) if row.key in judged]
        is_mixed = any(row.config.has_other_baseline for row in members)
        if is_mixed and len(points) > 1 and first.key in judged:
            found.append(Frontier(tuple(points), baseline.folder if several else ""))
    return found
