"""The report as one HTML file that needs no network: winners, points, plots, and the stored answers
of runs side by side.
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import all_settings, differences, setting_words
from ulskip_cli.experiments.statistics import read_answers, shares
from ulskip_cli.report import tables
from ulskip_cli.report.build import PAGE, Report
from ulskip_cli.report.plots import CAPTION, strategy_colour
from ulskip_cli.report.rows import Group, collected
from ulskip_cli.report.tables import EMPTY

MAX_EXAMPLES = 200  # per data set
MAX_RUNS = 48  # per data set
MAX_PICKED = 6  # runs selected at first
DATA_SET = ("task", "dataset", "pair")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![^\W\d])")
# A Chinese or Japanese character, a word, or a sign, with the spaces before it.
WORD = re.compile(r"\s*(?:[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*|\S)|\s+")


def write_page(report: Report, written: Sequence[Path]) -> Path:
    """Write the page of a report beside the files that are written, report.md and the plot as PNG
    and SVG, and return its path.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ulskip_cli", "assets/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["order"] = order
    page, plot = written[0].with_name(PAGE), written[1:]
    groups, records, gate = report.groups, report.records, report.gate
    judged = {id(share.record): share for share in shares(records, gate)}
    labels = {id(record): group.approach(record) for group in groups for record in group.records}
    titles = sorted({share.title for share in judged.values()})
    answers = collect(groups, records)
    table = report.long
    names = {"strategy", "target", *(shown.head for shown in tables.setting_columns(records))}
    facets = {
        head: sorted({order(line[i]) for line in table.cells} - {""}, key=_as_number)
        for i, head in enumerate(table.heads)
        if head in names
    }
    text = environment.get_template("page.html").render(
        report=report,
        plot=base64.b64encode(plot[1].read_bytes()).decode() if plot else None,
        caption=CAPTION,
        answers=asdict(answers),
        gate=f"{gate:.0%}",
        colour_of=strategy_colour,
        heading=tables.title(records) or "Skipped layers",
        table=table,
        facets=facets,
        rows=[(record, labels[id(record)], judged.get(id(record))) for record in records],
        last_stage=last_stage,
        readable={run.row for data_set in answers.sets for run in data_set.runs},
        metric=" or ".join(titles) if len(titles) < 2 else "primary metric",
        notes=tables.explanations(records),
        provenance=list(filter(None, tables.provenance(records).split("  \n"))),
    )
    write_atomic(page, text)
    return page


def last_stage(record: Record) -> frozenset[int]:
    """Return the layers that the last step runs; with early exit, the first n layers, if a step
    runs n on average.
    """
    if record.exit_depths and record.mean_kept_layers:
        return frozenset(range(round(record.mean_kept_layers)))
    last = record.later_stages[-1].kept_layers if record.later_stages else None
    return frozenset(last or record.kept_layers or ())


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
    """The answers of one run."""

    row: int  # its index among the rows of the page
    label: str
    colour: str
    outputs: list[int]  # positions of the answers among all texts
    flags: dict[int, list[str]]  # of answers, e.g. that they repeat
    baseline: int | None = None  # index of the full model's run


@dataclass
class DataSet:
    """The examples of one data set and the runs on them."""

    label: str
    stored: int  # examples, of which the page shows some
    examples: list[dict[str, int | str]]  # id, and positions of source and reference
    runs: list[Run]
    picked: list[int]  # runs that are selected at first


@dataclass
class ShownAnswers:
    """The stored answers that a page shows."""

    note: str  # a sentence on how many of the stored answers are included
    sets: list[DataSet] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # every text once
    # result of `compare_texts` by "base,text", for texts that differ
    changes: dict[str, list[int]] = field(default_factory=dict)


def collect(groups: Sequence[Group], rows: Sequence[Record]) -> ShownAnswers:
    """Read the answers to the first `MAX_EXAMPLES` examples of each data set, of at most `MAX_RUNS`
    runs. Runs refer to rows by their index in `rows`, and to texts by their index in a list of all.
    """
    group_of = {id(row): group for group in groups for row in group.records}
    answered = [
        i
        for i, row in enumerate(rows)
        if ResultsFolder(Path(row.folder)).stored_generations(row.id).is_file()
    ]
    stored = collected(answered, lambda i: " · ".join(filter(None, map(rows[i].value, DATA_SET))))
    if not stored:
        return ShownAnswers("The results folders hold no answers: they have no generations/.")
    texts: dict[str, int] = {}
    sets = []
    notes = []
    for label, indices in stored.items():
        chosen = sorted(sorted(indices, key=lambda i: rows[i].batch_size)[:MAX_RUNS])
        data_set = _data_set(label, {i: rows[i] for i in chosen}, group_of, texts)
        counts = f"{len(data_set.examples)} of {data_set.stored} examples"
        notes.append(f"{label}: {counts}, answers of {len(data_set.runs)} of {len(indices)} points")
        sets += [data_set] if data_set.runs else []
    every = list(texts)
    return ShownAnswers("; ".join(notes) + ".", sets, every, _changes(sets, every))


def _data_set(
    label: str,
    rows: Mapping[int, Record],
    group_of: Mapping[int, Group],
    texts: dict[str, int],
) -> DataSet:
    """Return the examples of one data set and the runs on them; runs that answered other examples
    are left out. `rows` are by their index on the page, `group_of` by the `id` of a row. `texts`
    maps each text to its position; new texts are added to it.
    """

    def position(text: str) -> int:
        return texts.setdefault(text, len(texts))

    stored = {i: read_answers(row.folder, row.id) for i, row in rows.items()}
    first = next(filter(None, stored.values()), [])
    sources = [answer["source"] for answer in first[:MAX_EXAMPLES]]
    examples: list[dict[str, int | str]] = [
        {
            "id": str(answer.get("id", "")),
            "source": position(answer["source"]),
            "reference": position(answer["reference"]),
        }
        for answer in first[:MAX_EXAMPLES]
    ]
    runs = []
    for i, answers in stored.items():
        shown = answers[:MAX_EXAMPLES]
        if shown and [answer["source"] for answer in shown] == sources:
            outputs = [position(answer["hypothesis"]) for answer in shown]
            flags = {k: answer["flags"] for k, answer in enumerate(shown) if answer.get("flags")}
            row, group = rows[i], group_of[id(rows[i])]
            has_target = row.target_speedup and not row.keeps_all
            name = group.called(row) if has_target else group.approach(row)
            runs.append(Run(i, name, strategy_colour(row.label), outputs, flags))
    ran = [rows[run.row] for run in runs]
    # of each label the run with the smallest batch
    picked = sorted(min(same, key=lambda k: ran[k].batch_size) for same in _by_label(runs))
    _tell_apart(runs, ran)
    for run, row in zip(runs, ran, strict=True):
        wanted = row.baseline_id or row.id
        fulls = [k for k, full in enumerate(ran) if full.keeps_all and full.model == row.model]
        run.baseline = min(fulls, key=lambda k: ran[k].id != wanted, default=None)
    return DataSet(label, len(first), examples, runs, picked[:MAX_PICKED])


def _by_label(runs: Sequence[Run]) -> Iterable[list[int]]:
    """Return the indices of runs, those of one label together."""
    return collected(range(len(runs)), lambda k: runs[k].label).values()


def _tell_apart(runs: Sequence[Run], rows: Sequence[Record]) -> None:
    """Add to equal labels of runs the settings in which their rows differ, or else their ids."""
    for same in _by_label(runs):
        keys = differences(all_settings([rows[k] for k in same]))
        for k in same:
            runs[k].label = " · ".join([runs[k].label, *setting_words(rows[k], keys)])
    for same in _by_label(runs):
        for k in same if len(same) > 1 else ():
            runs[k].label += f" · {rows[k].id}"


def _changes(sets: Sequence[DataSet], texts: Sequence[str]) -> dict[str, list[int]]:
    """Compare every answer with its reference and with the full model's answer; return the results
    of `compare_texts` by "base,text", two positions in `texts`.
    """
    pairs = set[tuple[int, int]]()
    for data_set in sets:
        references = [int(example["reference"]) for example in data_set.examples]
        for run in data_set.runs:
            fulls = references if run.baseline is None else data_set.runs[run.baseline].outputs
            for bases in (references, fulls):
                pairs.update(zip(bases, run.outputs, strict=True))
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
    ours, theirs = WORD.findall(base), WORD.findall(text)
    matcher = SequenceMatcher(None, ours, theirs)
    result = [round(100 * matcher.ratio())]
    i = j = equal = 0
    for our_start, their_start, size in matcher.get_matching_blocks():
        result += [equal, sum(map(len, ours[i:our_start])), sum(map(len, theirs[j:their_start]))]
        i, j = our_start + size, their_start + size
        equal = sum(map(len, ours[our_start:i]))
    return result
