"""The rows of the Multi30k reproduction with their scores on both test sets, and paired
comparisons.

Generations contain the text of Multi30k (CC BY-NC-SA 4.0) and are not committed. answers.jsonl.gz
stores the hypotheses alone, comparisons.json the scores that need texts, so that a report requires
neither generations nor data.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from sacrebleu.metrics.bleu import BLEU

from ulskip_cli.core.files import read_jsonl, write_atomic
from ulskip_cli.experiments.record import Record as Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.tasks.example_files import read_lines
from ulskip_cli.tasks.metrics import ScoredTexts
from ulskip_cli.tasks.metrics.translation import compare_systems

TESTS = ("test_2016_flickr", "test_2017_flickr")
ANSWERS, COMPARISONS = "answers.jsonl.gz", "comparisons.json"
BASE, PATCHED, ADAPTER = "base", "base with patches", "adapter-"


@dataclass(frozen=True)
class Point:
    """A checkpoint under one schedule: one row for each test set, and BLEU of both test sets
    together.
    """

    checkpoint: str
    rows: tuple[Row, ...]  # in the order of TESTS
    bleu: float

    @property
    def row(self) -> Row:
        return self.rows[0]

    @property
    def ids(self) -> str:
        return " ".join(row.id for row in self.rows)


class Texts:
    """The hypotheses of rows, from generations or the file of answers, and references, from
    generations or the data.
    """

    def __init__(self, folder: Path, data: Path | None) -> None:
        self.folder = folder
        # hypotheses by row id, of the file of answers and of generations
        self.stored, self.read = read_answers(folder / ANSWERS), dict[str, list[str]]()
        # by test set
        self.references = {test: read_lines(data / f"{test}.en") for test in TESTS} if data else {}

    def hypotheses(self, row: Row) -> list[str] | None:
        """Return the answers of a row, None if they are not stored; references beside them are
        remembered.
        """
        file = self.folder / "generations" / f"{row.id}.jsonl"
        if row.id not in self.read and file.is_file():
            texts = read_jsonl(file)
            self.read[row.id] = [text["hypothesis"] for text in texts]
            self.references.setdefault(test_set(row), [text["reference"] for text in texts])
        return self.read.get(row.id) or self.stored.get(row.id)

    def pooled(self, rows: tuple[Row, ...]) -> tuple[list[str], list[str]] | None:
        """Return the hypotheses and the references of all test sets together, from a row for each;
        None if some are not known.
        """
        hypotheses, references = list[str](), list[str]()
        for row, test in zip(rows, TESTS, strict=True):
            answers, expected = self.hypotheses(row), self.references.get(test)
            if answers is None or expected is None:
                return None
            hypotheses += answers
            references += expected
        return hypotheses, references


def test_set(row: Row) -> str:
    return Path(row.config.task.source_file).stem


def checkpoint_of(row: Row) -> str:
    if row.correction and row.correction.name == "adapter":
        return Path(row.correction.path or "").name
    return PATCHED if row.correction else Path(row.model or "").name


def key_of(row: Row) -> tuple[str, str, float]:
    """Return the checkpoint and the schedule of a row."""
    return checkpoint_of(row), row.strategy, row.target_speedup


def read_answers(file: Path) -> dict[str, list[str]]:
    """Read hypotheses by row id from a file of `write_answers`."""
    if not file.exists():
        return {}
    answers: dict[str, list[str]] = {}
    ids: list[str] = []
    # Not splitlines, because hypotheses can contain other line ends.
    for line in gzip.decompress(file.read_bytes()).decode().split("\n")[:-1]:
        entry = json.loads(line)
        if isinstance(entry, dict):  # begins a test set
            ids = entry["rows"]
            answers |= {row_id: [] for row_id in ids}
        else:  # the hypotheses of all rows for one sentence
            for row_id, hypothesis in zip(ids, entry, strict=True):
                answers[row_id].append(hypothesis)
    return answers


def write_answers(file: Path, answers: dict[str, dict[str, list[str]]]) -> None:
    """Write hypotheses by test set and row id: a line with the ids, then a line for each sentence,
    which compresses best.
    """
    lines: list[Any] = []
    for test, rows in answers.items():
        lines += [{"test": test, "rows": list(rows)}, *zip(*rows.values(), strict=True)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(file, gzip.compress(text.encode(), mtime=0))


class Rows:
    """Points by checkpoint and schedule, and comparisons.

    A point that lacks a row or whose score can neither be read nor computed is left out.
    """

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        self.folder, self.texts = folder, Texts(folder, data)
        # What needs texts: pooled BLEU by the ids of a point's rows, differences by both points'
        # ids, and by row id if a row that was made again has the same answers.
        self.comparisons: dict[str, dict[str, Any]] = {"pooled": {}, "differences": {}, "again": {}}
        if (folder / COMPARISONS).exists():
            self.comparisons |= json.loads((folder / COMPARISONS).read_text("utf-8"))
        rows_by_test: dict[tuple[str, str, float], dict[str, Row]] = {}
        for row in (row for row in ResultsFolder(folder).records() if row.is_done):
            rows = rows_by_test.setdefault(key_of(row), {})
            if test_set(row) == TESTS[0] and rows.get(TESTS[0], row).id != row.id:
                rows.clear()  # rows of earlier weights
            rows[test_set(row)] = row
        self.points: dict[tuple[str, str, float], Point] = {}
        complete = {
            key: tuple(rows[test] for test in TESTS)
            for key, rows in rows_by_test.items()
            if set(TESTS) <= set(rows)
        }
        for rows_of_point in complete.values():
            for row in rows_of_point:
                self.texts.hypotheses(row)  # finds the references
        self.compare_repetitions()
        for key, rows_of_point in complete.items():
            bleu = self.pooled_bleu(rows_of_point)
            if bleu is not None:
                self.points[key] = Point(key[0], rows_of_point, bleu)

    def compare_repetitions(self) -> None:
        """Compare the answers of rows that were made again, and have generations, with those that
        are stored of their earlier rows.
        """
        earlier: dict[tuple[object, ...], list[str]] = {}
        for row in ResultsFolder(self.folder).rows():
            key = (*key_of(row), test_set(row))
            if row.id in self.texts.read and key in earlier:
                self.comparisons["again"][row.id] = self.texts.read[row.id] == earlier[key]
            elif row.id in self.texts.stored:
                earlier[key] = self.texts.stored[row.id]

    def pooled_bleu(self, rows: tuple[Row, ...]) -> float | None:
        """Return BLEU of both test sets together, computed unless `comparisons` has it; None
        without texts.
        """
        known, ids = self.comparisons["pooled"], " ".join(row.id for row in rows)
        if ids not in known:
            texts = self.texts.pooled(rows)
            if texts is None:
                return None
            known[ids] = BLEU().corpus_score(texts[0], [texts[1]]).score
        return float(known[ids])

    def tuned(
        self, strategy: str, ratio: float, seed: int = 1, prefix: str = "", variant: str = ""
    ) -> Point | None:
        """Return the point of one training for a schedule, None if there is none; `prefix` and
        `variant` are the beginning and the end of its name that `METHODS` of tables.py lists.
        """
        # Early exit has one training for all ratios.
        ratios = "2+3+6" if strategy == "early_exit" else f"{ratio:g}"
        return self.points.get((f"{prefix}{strategy}-{ratios}x{variant}-s{seed}", strategy, ratio))

    def seeds(
        self, strategy: str, ratio: float, prefix: str = "", variant: str = ""
    ) -> list[Point]:
        """Return the points of `tuned` for all seeds that there are."""
        points = [self.tuned(strategy, ratio, seed, prefix, variant) for seed in range(1, 10)]
        return [point for point in points if point]

    def bleu(self, strategy: str, ratio: float) -> float:
        return mean(point.bleu for point in self.seeds(strategy, ratio))

    @property
    def full_models(self) -> dict[str, float]:
        """BLEU of the control, which is the full model fine-tuned with the same budget, and of the
        base.
        """
        control, base = self.seeds("full", 1.0), self.points.get((BASE, "full", 1.0))
        known = {"control": mean(point.bleu for point in control)} if control else {}
        return known | ({"base": base.bleu} if base else {})

    @property
    def better(self) -> tuple[str, float]:
        """The name and BLEU of the better full model."""
        return max(self.full_models.items(), key=lambda item: item[1])

    def difference(self, one: Point, other: Point) -> Row | None:
        """Return pooled BLEU of `one` minus that of `other`, as `delta`, `delta_low` and
        `delta_high`, computed by sacrebleu's paired bootstrap unless `comparisons` has it; None
        without texts.
        """
        known, ids = self.comparisons["differences"], f"{one.ids} minus {other.ids}"
        if ids not in known:
            own, others = self.texts.pooled(one.rows), self.texts.pooled(other.rows)
            if own is None or others is None:
                return None
            known[ids] = compare_systems(BLEU(), ScoredTexts(own[0], own[1], [], others[0]))
        return dict(known[ids])

    def save(self) -> None:
        """Write the comparisons, and the hypotheses of the points that have some."""
        write_atomic(self.folder / COMPARISONS, json.dumps(self.comparisons, indent=1) + "\n")
        answers: dict[str, dict[str, list[str]]] = {test: {} for test in TESTS}
        for point in self.points.values():
            for test, row in zip(TESTS, point.rows, strict=True):
                hypotheses = self.texts.hypotheses(row)
                if hypotheses is not None:
                    answers[test][row.id] = hypotheses
        write_answers(self.folder / ANSWERS, answers)
