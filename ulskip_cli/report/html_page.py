"""The report as one HTML file that needs no network: winners, points, plot and stored answers."""

import base64
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING

from ulskip_cli.core.files import JsonObject, write_atomic
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import all_settings, differences, setting_words
from ulskip_cli.experiments.statistics import read_answers, shares
from ulskip_cli.report import tables
from ulskip_cli.report.build import PAGE, Report
from ulskip_cli.report.plots import CAPTION, strategy_colour
from ulskip_cli.report.rows import Group, collected
from ulskip_cli.report.tables import EMPTY, TableSection

if TYPE_CHECKING:
    from jinja2 import Template

MAX_EXAMPLES = 200  # per data set
MAX_RUNS = 48  # per data set
MAX_PICKED = 6  # runs selected at first
DATA_SET = ("task", "dataset", "pair")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![^\W\d])")
# A Chinese or Japanese character, a word, or a sign, with the spaces before it.
WORD = re.compile(r"\s*(?:[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*|\S)|\s+")


def write_page(report: Report, written: Sequence[Path]) -> Path:
    """Write the page beside the `written` files, report.md and perhaps the plot as PNG and SVG;
    return its path.
    """
    page, plot = written[0].with_name(PAGE), written[1:]
    groups, records, table = report.groups, report.records, report.long
    labels = {id(record): group.approach(record) for group in groups for record in group.records}
    share_of = {id(share.record): share for share in shares(records, report.gate)}
    metrics = sorted({share.title for share in share_of.values()})
    answers = shown_answers(groups, records)
    text = _template().render(
        report=report,
        plot=base64.b64encode(plot[1].read_bytes()).decode() if plot else None,
        caption=CAPTION,
        answers=asdict(answers),
        gate=f"{report.gate:.0%}",
        colour_of=strategy_colour,
        heading=tables.title(records) or "Skipped layers",
        table=table,
        facets=_facets(table, records),
        rows=[(record, labels[id(record)], share_of.get(id(record))) for record in records],
        last_stage=last_stage,
        readable={run.row for data_set in answers.sets for run in data_set.runs},
        metric="primary metric" if len(metrics) > 1 else "".join(metrics),
        notes=tables.explanations(records),
        provenance=tables.provenance_lines(records),
    )
    write_atomic(page, text)
    return page


def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ulskip_cli", "assets/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["order"] = order
    return environment.get_template("page.html")


def _facets(table: TableSection, records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the values by which the page filters its rows, by the head of their column."""
    names = {"strategy", "target", *(column.head for column in tables.setting_columns(records))}
    facets = {}
    for index, head in enumerate(table.heads):
        if head in names:
            values = {order(line[index]) for line in table.cells} - {""}
            facets[head] = sorted(values, key=_as_number)
    return facets


def last_stage(record: Record) -> frozenset[int]:
    """Return the layers of the last step; with early exit, as many first layers as a mean step
    runs.
    """
    if record.exit_depths and record.mean_kept_layers:
        return frozenset(range(round(record.mean_kept_layers)))
    last = record.kept_layers
    for stage in record.later_stages:
        last = stage.kept_layers or last
    return frozenset(last or ())


def order(text: str) -> str:
    """Return the text by which the page sorts and filters a cell: its number, or else its words.

    >>> order("1.80"), order("96.7%"), order("top_skip"), order("–")
    ('1.8', '96.7', 'top_skip', '')
    """
    number = NUMBER.match(text)
    if number:
        return f"{float(number[0]):.10g}"
    return "" if text in EMPTY else text


def _as_number(text: str) -> tuple[float, str]:
    return (float(text), "") if NUMBER.fullmatch(text) else (0.0, text)


@dataclass
class Run:
    """The answers of one run, as many as the examples of its data set."""

    row: int  # its index among the rows of the page
    label: str
    colour: str
    outputs: list[int]  # positions of the answers among all texts
    flags: dict[int, list[str]]  # by index of the example, e.g. that the answer repeats
    baseline: int | None  # index of the full model's run in the data set


@dataclass
class DataSet:
    """The examples of one data set and the runs on them."""

    label: str
    stored: int  # number of examples, of which the page shows some
    examples: list[dict[str, int | str]]  # id, and positions of source and reference
    runs: list[Run]
    picked: list[int]  # indices of the runs that are selected at first


@dataclass
class ShownAnswers:
    """The stored answers that a page shows."""

    note: str  # a sentence on how many of the stored answers are included
    sets: list[DataSet] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # every text once
    # result of `compare_texts` by "base,text", for texts that differ
    changes: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class PageRow:
    """A row of the page that has stored answers."""

    index: int  # among the rows of the page
    record: Record
    group: Group

    @property
    def name(self) -> str:
        """The name of the point, or of the approach if there is no target."""
        if self.record.target_speedup and not self.record.keeps_all:
            return self.group.called(self.record)
        return self.group.approach(self.record)

    @property
    def data_set(self) -> str:
        """The label of the data set."""
        return " · ".join(filter(None, map(self.record.value, DATA_SET)))


class Texts(dict[str, int]):
    """The texts of a page, each once, with their positions."""

    def add(self, text: str) -> int:
        """Return the position of a text, added if it is new."""
        return self.setdefault(text, len(self))


def shown_answers(groups: Sequence[Group], records: Sequence[Record]) -> ShownAnswers:
    """Read the answers to the first `MAX_EXAMPLES` examples of each data set, of the `MAX_RUNS`
    runs with the smallest batches. `records` are the rows of the page.
    """
    group_of = {id(record): group for group in groups for record in group.records}
    answered = [
        PageRow(index, record, group_of[id(record)])
        for index, record in enumerate(records)
        if ResultsFolder(Path(record.folder)).stored_generations(record.id).is_file()
    ]
    if not answered:
        return ShownAnswers("The results folders hold no answers: they have no generations/.")
    texts, sets, notes = Texts(), list[DataSet](), list[str]()
    for label, rows in collected(answered, lambda row: row.data_set).items():
        chosen = sorted(rows, key=lambda row: row.record.batch_size)[:MAX_RUNS]
        data_set = _data_set(label, sorted(chosen, key=lambda row: row.index), texts)
        counts = f"{len(data_set.examples)} of {data_set.stored} examples"
        notes.append(f"{label}: {counts}, answers of {len(data_set.runs)} of {len(rows)} points")
        if data_set.runs:
            sets.append(data_set)
    return ShownAnswers(
        "; ".join(notes) + ".", sets, list(texts), _compared_texts(sets, list(texts))
    )


def _data_set(label: str, rows: Sequence[PageRow], texts: Texts) -> DataSet:
    """Return the examples of the first row with answers, and the runs of all rows that answered the
    same. All shown texts are added to `texts`.
    """
    stored = [read_answers(row.record.folder, row.record.id) for row in rows]
    first = next(filter(None, stored), [])  # of the first row that has any
    first_shown = first[:MAX_EXAMPLES]
    examples: list[dict[str, int | str]] = [
        {
            "id": str(answer.get("id", "")),
            "source": texts.add(answer["source"]),
            "reference": texts.add(answer["reference"]),
        }
        for answer in first_shown
    ]
    sources = [answer["source"] for answer in first_shown]
    ran, shown = list[PageRow](), list[list[JsonObject]]()
    for row, answers in zip(rows, stored, strict=True):
        if sources and [answer["source"] for answer in answers[:MAX_EXAMPLES]] == sources:
            ran.append(row)
            shown.append(answers[:MAX_EXAMPLES])
    runs = [
        Run(
            row=row.index,
            label=run_label,
            colour=strategy_colour(row.record.label),
            outputs=[texts.add(answer["hypothesis"]) for answer in answers],
            flags={i: answer["flags"] for i, answer in enumerate(answers) if answer.get("flags")},
            baseline=_baseline(row, ran),
        )
        for row, run_label, answers in zip(ran, _run_labels(ran), shown, strict=True)
    ]
    return DataSet(label, len(first), examples, runs, _picked(ran))


def _run_labels(rows: Sequence[PageRow]) -> list[str]:
    """Return the names of the rows; equal names get the settings in which the rows differ, or else
    ids.
    """
    keys_by_name = {
        name: differences(all_settings([row.record for row in same]))
        for name, same in collected(rows, lambda row: row.name).items()
    }
    labels = [
        " · ".join([row.name, *setting_words(row.record, keys_by_name[row.name])]) for row in rows
    ]
    return [
        label if labels.count(label) == 1 else f"{label} · {row.record.id}"
        for row, label in zip(rows, labels, strict=True)
    ]


def _picked(rows: Sequence[PageRow]) -> list[int]:
    """Return the indices of rows of different names, each with its smallest batch."""
    picked = dict[str, int]()  # by name
    for index in sorted(range(len(rows)), key=lambda index: rows[index].record.batch_size):
        picked.setdefault(rows[index].name, index)
    return sorted(picked.values())[:MAX_PICKED]


def _baseline(row: PageRow, rows: Sequence[PageRow]) -> int | None:
    """Return the index of the row's own baseline, or else of the first full model with
    its weights.
    """
    fulls = [
        index
        for index, full in enumerate(rows)
        if full.record.keeps_all and full.record.model == row.record.model
    ]
    wanted = row.record.baseline_id or row.record.id
    exact = [index for index in fulls if rows[index].record.id == wanted]
    return next(iter([*exact, *fulls]), None)


def _compared_texts(sets: Sequence[DataSet], texts: Sequence[str]) -> dict[str, list[int]]:
    """Compare every answer with its reference and with the full model's answer."""
    pairs = set[tuple[int, int]]()
    for data_set in sets:
        references = [int(example["reference"]) for example in data_set.examples]
        for run in data_set.runs:
            pairs.update(zip(references, run.outputs, strict=True))
            if run.baseline is not None:
                full = data_set.runs[run.baseline]
                pairs.update(zip(full.outputs, run.outputs, strict=True))
    return {
        f"{base},{text}": compare_texts(texts[base], texts[text])
        for base, text in sorted(pairs)
        if base != text
    }


def compare_texts(base: str, text: str) -> list[int]:
    """Return the differences of two texts as a flat list, from which the page colours both.

    The first number is the percentage of equal words. Then come triples of character counts: of a
    run of words that is in both texts, then of words that only `base` and only `text` have there.

    >>> compare_texts("a b c", "a c")
    [80, 0, 0, 0, 1, 2, 0, 2, 0, 0]
    """
    base_words, text_words = WORD.findall(base), WORD.findall(text)
    matcher = SequenceMatcher(None, base_words, text_words)
    result = [round(100 * matcher.ratio())]
    base_end = text_end = 0  # numbers of the words up to the end of the last equal run
    equal = 0  # characters of that run
    for base_start, text_start, size in matcher.get_matching_blocks():
        only_base = "".join(base_words[base_end:base_start])
        only_text = "".join(text_words[text_end:text_start])
        result += [equal, len(only_base), len(only_text)]
        base_end, text_end = base_start + size, text_start + size
        equal = len("".join(base_words[base_start:base_end]))
    return result
