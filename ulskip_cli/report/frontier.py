"""The frontier: layers, engines, formats of weights and drafts compared with one full model, which
ran in `baseline_engine`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from ulskip_cli.experiments.intervals import Interval
from ulskip_cli.experiments.record import Column, Record
from ulskip_cli.experiments.statistics import (
    HOLDS,
    SAME,
    QualityShare,
    is_faster,
    shares,
    speedup_text,
)
from ulskip_cli.report.reference import ComparedPair
from ulskip_cli.report.rows import collected, done, grouped
from ulskip_cli.report.tables import TableSection

TARGETS = (1.25, 1.5, 2.0, 3.0)
FULL, QUANTIZED, SKIPPING, BOTH = "full", "quantized", "skipping", "skipping and quantized"
DRAFTING, ADAPTED = "drafting", "skipping with an adapter"
EXACT = (FULL, DRAFTING)  # give the answers of the baseline, up to rounding
KINDS = (*EXACT, QUANTIZED, SKIPPING, ADAPTED, BOTH)
BITS_UNQUANTIZED = 16


def kind_of(record: Record) -> str:
    """Return one of KINDS."""
    skips, formats = _skips(record), record.config.engine.formats
    bits, *_ = formats.get(record.engine_weights or "", (BITS_UNQUANTIZED,))
    if bits < BITS_UNQUANTIZED or _quantization(record):
        return BOTH if skips and not record.draft_tokens else QUANTIZED
    if record.draft_tokens:
        return DRAFTING
    if _is_adapted(record) and skips:
        return ADAPTED
    return SKIPPING if skips else FULL


def needs_training(record: Record) -> bool:
    """Return True if a method skips layers, also to draft, with an adapter or with weights that
    were trained for skipping.
    """
    return _skips(record) and (_is_adapted(record) or record.training is not None)


def _skips(record: Record) -> bool:
    kept = len(record.kept_layers or ())
    varies = record.later_stages or record.exit_depths
    return kept < (record.num_layers or 0) or bool(varies)


def _is_adapted(record: Record) -> bool:
    return record.correction is not None and record.correction.name == "adapter"


def engine_of(record: Record) -> str:
    """Name the engine and the format of its weights; drafting on torch has a name of its own."""
    name = "torch" if record.engine == "speculative" else record.engine
    return " ".join(filter(None, [name, record.engine_weights or _quantization(record)]))


def _quantization(record: Record) -> str | None:
    """Return how the weights are quantized in memory; None if only their file is quantized and
    torch uses dequantized weights.
    """
    label = record.quantization
    return None if label and "dequantized" in label else label


def name_of(record: Record) -> str:
    """Name the engine, the method unless the whole model decodes alone, and fewer layers."""
    if kind_of(record) in (FULL, QUANTIZED) and not record.draft_tokens:
        return engine_of(record)
    layers = f" {record.layers}" if _skips(record) else ""
    return f"{engine_of(record)}, {record.label}{layers}"


def speed_of(point: QualityShare) -> float:
    """Return the speedup over the baseline."""
    return point.record.measured_speedup or 0.0


@dataclass(frozen=True)
class Frontier:
    """The points of one folder that share a baseline, at any batch size. The baseline at each batch
    size is first, that of most points before; the others are sorted by batch size, by kind, exact
    methods first, and by speed.
    """

    points: tuple[QualityShare, ...]
    folder: str = ""  # of the records, if other folders have frontiers too

    @cached_property
    def beaten(self) -> dict[str, tuple[QualityShare, bool]]:
        """For the id of every beaten point: the fastest point of its batch size that is faster and
        not worse, surely if possible, and True if the intervals confirm it.
        """
        beaten = {}
        for point in self.points:
            better = [
                (rival, _is_sure(rival, point))
                for rival in self.points
                if speed_of(rival) > speed_of(point)
                and rival.share >= point.share
                and rival.record.batch_size == point.record.batch_size
            ]
            if better:
                beaten[point.record.id] = max(better, key=lambda pair: (pair[1], speed_of(pair[0])))
        return beaten

    def best(self, target: float, batch_size: int, trained: bool) -> QualityShare | None:
        """Return the best point at a batch size, with or without training, among those that reach a
        speedup and are surely faster than the baseline, or None: an exact one, or else the one that
        keeps most quality; the fastest of equal ones. Drafts that are slower than the same weights
        alone are left out, because both give the same answers up to rounding.
        """
        points = [point for point in self.points if point.record.batch_size == batch_size]
        alone = {
            engine_of(point.record): speed_of(point)
            for point in points
            if name_of(point.record) == engine_of(point.record)
        }
        able = [
            point
            for point in points
            if speed_of(point) >= target
            and is_faster(point.record)
            and needs_training(point.record) is trained
            and not (
                point.record.draft_tokens
                and speed_of(point) < alone.get(engine_of(point.record), 0.0)
            )
        ]

        def rank(point: QualityShare) -> tuple[bool, float, float]:
            return kind_of(point.record) in EXACT, point.share, speed_of(point)

        return max(able, key=rank, default=None)

    @property
    def batch_sizes(self) -> list[int]:
        """All batch sizes, ascending."""
        return sorted({point.record.batch_size for point in self.points})

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
            choices([self], f"What to use at each speedup: {of}"),
            self.table(f"Layers, engines and formats: {of}"),
        ]

    def table(self, title: str) -> TableSection:
        """Make the table of all points."""
        first = self.points[0]
        note = (
            f"Speedup and quality of every row are compared with {name_of(first.record)} at full"
            " depth and the same batch size, in pairs and on the same examples. Speedup: of"
            " decoding; with prompt: of reading the prompt and decoding. Beaten by: another point"
            " of this batch size is faster and better; with a question mark, an interval leaves"
            " that open."
        )
        columns = [
            Column("engine", lambda point: engine_of(point.record)),
            Column("method", "record.label"),
            Column("layers", "record.layers"),
            *[Column("batch", "record.batch_size")] * (len(self.batch_sizes) > 1),
            Column("speedup", speed_of, ".2f"),
            Column("interval", "record.interval"),
            Column("with prompt", _with_prompt),
            Column(first.title, "value", ".1f"),
            Column("of baseline", QualityShare.text),
            Column("verdict", self._fate),
        ]
        return TableSection.of(title, self.points, columns, note, words=2)

    def _fate(self, point: QualityShare) -> str:
        winner, sure = self.beaten.get(point.record.id, (None, True))
        return f"beaten by {name_of(winner.record)}{'' if sure else ' ?'}" if winner else "front"


class Choice(NamedTuple):
    """A line of the table of what to use: the best points without and with training at a batch
    size and target speedups.
    """

    model: str
    batch_size: int
    targets: str
    untrained: QualityShare | None
    trained: QualityShare | None


def _with_prompt(point: QualityShare) -> str | None:
    """Return the speedup of prompt and decoding, with its interval."""
    both = point.record.with_prompt
    return both and both.text(".2f")


def _described(point: QualityShare | None) -> str | None:
    """Name the method of a point, its speedups and its share of quality."""
    if not point:
        return None
    record, prompt = point.record, _with_prompt(point)
    prompt = f", with the prompt {prompt}" if prompt else ""
    return f"{name_of(record)}: {speedup_text(record)}{prompt}, keeps {point.text()}"


def choices(found: Sequence[Frontier], title: str = "") -> TableSection:
    """Make the table of what to use at each target speedup and batch size."""
    note = (
        "The exact method that reaches the speedup, or else the one that keeps most of the"
        " baseline's score. Exact: all layers decide every token, with weights that are not"
        " quantized. With training: of an adapter, or of the model to skip layers. An interval that"
        " begins below the speedup leaves open if it is reached. No measured point reaches a"
        " speedup without a line. Drafts count where they are faster than the same weights alone."
    )
    caveats = {frontier.points[-1].caveat for frontier in found} - {""}
    note += "".join(f" {caveat[0].upper()}{caveat[1:]}." for caveat in sorted(caveats))
    columns = [
        Column("model", "model"),
        Column("batch", "batch_size"),
        Column("speedup", "targets"),
        Column("without training", lambda line: _described(line.untrained)),
        Column("with training", lambda line: _described(line.trained)),
    ]
    lines = []
    for frontier in found:
        for batch_size in frontier.batch_sizes:
            best = [
                (target, [frontier.best(target, batch_size, trained) for trained in (False, True)])
                for target in TARGETS
            ]
            for points, same in groupby(best, key=itemgetter(1)):
                if any(points):
                    targets = ", ".join(f"{target:g}x" for target, _ in same)
                    model = frontier.points[0].record.model
                    lines.append(Choice(model, batch_size, targets, *points))
    return replace(TableSection.of(title, lines, columns, note), sentences=True)


def _is_sure(rival: QualityShare, point: QualityShare) -> bool:
    """Return True if the intervals say that a rival is faster than a point, and not worse."""
    pair = ComparedPair(rival.record, point.record)
    return pair.faster == HOLDS and (pair.better == HOLDS or pair.quality == SAME)


def frontiers(records: Sequence[Record]) -> list[Frontier]:
    """Return a frontier for every full model and folder in which other engines are compared with
    it. Full models that differ only in batch size share one.
    """
    by_key = {record.key: record for record in done(records)}
    rows_of = collected(
        (row for row in by_key.values() if row.speedup and not row.has_two_depths),
        lambda row: (row.folder, row.baseline_id or ""),
    )
    several, found = len({folder for folder, _ in by_key}) > 1, []
    for group in grouped([by_key[key] for key in rows_of if key in by_key]):
        fulls = sorted(group.records, key=lambda full: -len(rows_of[full.key]))
        members = [row for full in fulls for row in rows_of[full.key]]
        one = Interval(1.0, 1.0, 1.0)
        clock = one.row("measured_speedup") | one.row("end_to_end_speedup")
        firsts = [full.replace(**clock, pairs=None, baseline_id=full.id) for full in fulls]
        judged = shares([*firsts, *members], 1.0)
        members.sort(
            key=lambda row: (
                row.batch_size,
                KINDS.index(kind_of(row)),
                row.measured_speedup or 0.0,
            )
        )
        points = [judged[row.key] for row in (*firsts, *members) if row.key in judged]
        is_mixed = any(row.config.crosses_engines for row in members)
        if is_mixed and len(points) > len(fulls) and firsts[0].key in judged:
            found.append(Frontier(tuple(points), fulls[0].folder if several else ""))
    return found
