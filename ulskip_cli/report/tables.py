"""Tables as text for a terminal, Markdown, CSV and LaTeX, and the long table, which has one line
per record.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import (
    ABSENT,
    MIN_FOR_STARS,
    MISSING,
    Column,
    Record,
    cell,
    columns,
)
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import primary, shares
from ulskip_cli.report.plot_style import shortened
from ulskip_cli.report.rows import (
    LINES,
    NAMES,
    displayed,
    done,
    ordered,
    reasons,
    setting_text,
    setting_title,
    varying,
)
from ulskip_cli.tasks.metrics import metric_keys

MAX_CELL = 24  # characters per cell on a terminal
MAX_LATEX_LINES = 40  # lines of a table on one page
LATEX_HEADER = "% needs \\usepackage{booktabs}, and longtable where a table is longer than a page"
STARS = (
    "A star (*) marks a score that differs from the full model's (paired bootstrap, p < 0.05 for"
    " each comparison, not corrected for the number of comparisons)."
)
MEASURED = (
    "Measured: decode seconds of the full model divided by those of the strategy, median of timed"
    " pairs."
)
_LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "·": r"\textperiodcentered{}",
        "…": r"\ldots{}",
        "–": "--",
        "*": r"\textsuperscript{*}",
    }
)


Line = TypeVar("Line")


class Head(NamedTuple):
    """The head of a column of a table."""

    title: str  # may hold a line break
    # order of removal on a narrow terminal: 1 is removed first, 0 never; files have all columns
    leaves: int = 0

    @property
    def text(self) -> str:
        """The title on one line."""
        return self.title.replace("-\n", "").replace("\n", " ")


@dataclass(frozen=True)
class Section:
    """A table of texts with its heading and note, independent of the output format."""

    title: str
    heads: list[Head]
    cells: list[list[str]]
    note: str = ""
    words: int = 2  # number of first columns that hold words, aligned left
    sentences: bool = False  # cells hold sentences, which wrap

    @property
    def anchor(self) -> str:
        """The id of the section on a page."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    @property
    def num_words(self) -> int:
        """The number of columns that are aligned left."""
        return len(self.heads) if self.sentences else min(self.words, len(self.heads))

    @property
    def frame(self) -> pd.DataFrame:
        """The table as a data frame of texts."""
        return pd.DataFrame(self.cells, columns=[head.text for head in self.heads], dtype=object)

    def lines(self) -> list[dict[str, str]]:
        """Return the table as plain values."""
        lines: list[dict[str, str]] = self.frame.to_dict("records")
        return lines

    @classmethod
    def of(
        cls,
        title: str,
        lines: Sequence[Line],
        shown: "Sequence[tuple[Head, Callable[[Line], str]]]",
        note: str = "",
        words: int = 2,
    ) -> "Section":
        """Make a table of a head and a cell for each column; columns in which no line has a value
        are left out.
        """
        empty = {MISSING, *ABSENT.values()}
        texts = [(head, [show(line) for line in lines]) for head, show in shown]
        texts = [(head, cells) for head, cells in texts if set(cells) - empty]
        rows = [list(line) for line in zip(*(cells for _, cells in texts), strict=True)]
        return cls(title, [head for head, _ in texts], rows, note, words)


Shown = tuple[Head, Callable[[Record], str]]


def column(key: str, title: str = "") -> Shown:
    """Return the first column of a field, for records."""
    return shown(key, next(column for name, column in columns() if name == key), title)


def shown(key: str, column: Column, title: str = "") -> Shown:
    """Return a column of a field, for records."""
    return Head(title or column.title, column.leaves), partial(cell, key=key, column=column)


def setting(key: str, leaves: int = 0) -> Shown:
    """Return the column of a setting."""
    return Head(setting_title(key).replace(" ", "\n"), leaves), partial(setting_text, key=key)


def long_section(records: Sequence[Record]) -> Section:
    """Make the long table: the settings in which the records differ, and the columns for which some
    record has a value.
    """
    records = ordered(records)
    note = sentences(explanations(records))
    return Section.of(title(records), records, long_columns(records), note, words=1)


def long_columns(records: Sequence[Record]) -> list[Shown]:
    """Return the columns of the long table: the strategy, settings, and measured values."""
    strategy, *measured = (shown(key, column) for key, column in columns())
    return [strategy, *settings(records), *measured, *_harness(records)]


def short_section(records: Sequence[Record]) -> Section:
    """Make the short table: kept layers, predicted and measured speedup, and quality."""
    records = ordered(records)
    kept = shares(records)
    metric = primary(records)
    measured = [shown(key, column) for key, column in columns() if column.first or key == metric]
    share = (
        Head("of\nfull"),
        lambda record: f"{kept[record.key].share:.0%}" if record.key in kept else MISSING,
    )
    table = [*measured[:1], *settings(records), *measured[1:-1], share, measured[-1]]
    note = sentences(
        [STARS] if any(record.is_significant(metric or "") for record in records) else []
    )
    return Section.of(title(records), records, table, sentences([note, *reasons(records)]), words=1)


def terminal(wide: bool) -> Callable[[Sequence[Record], int], list[Table]]:
    """Return a function that draws the table of records for a terminal, with few columns or with as
    many as fit.
    """
    make = long_section if wide else short_section
    return lambda records, width: [
        draw(make([displayed(record, Path()) for record in records]), width, "table.md")
    ]


def settings(records: Sequence[Record]) -> list[Shown]:
    """Return the columns of settings in which records differ, and of options in which records with
    the same label differ.
    """
    named: dict[str, list[Record]] = {}
    for record in records:
        named.setdefault(record.label, []).append(record)
    options = [
        key
        for same in named.values()
        for key in varying(same)
        if key.partition(".")[0] in LINES[:2]
    ]
    keys = [*dict.fromkeys(options), *varying(records, but=[*LINES[:3], "folder"])]
    return [
        setting(key, 0 if key in NAMES else turn)
        for turn, key in zip(range(len(keys), 0, -1), keys, strict=True)
    ]


def _harness(records: Sequence[Record]) -> list[Shown]:
    """Make the columns of lm-evaluation-harness metrics, in the harness's units, with standard
    errors.
    """

    def show(record: Record, key: str) -> str:
        scores = record.lm_eval or {}
        name, _, rest = key.partition(" ")
        error = scores.get(f"{name}_stderr {rest}".strip())
        return (
            MISSING
            if scores.get(key) is None
            else f"{scores[key]:.4g}" + (f"±{error:.2g}" if error else "")
        )

    keys = dict.fromkeys(
        key for record in records for key in record.lm_eval or {} if "_stderr" not in key
    )
    return [(Head(key.replace("_", "\n", 1)), partial(show, key=key)) for key in keys]


def draw(section: Section, width: int, file: str) -> Table:
    """Draw a table for a terminal; if columns do not fit, drop the least important ones and name
    the complete file.
    """
    kept, note = list(range(len(section.heads))), section.note
    while True:
        for roomy in [True] * (width >= 100) + [False]:
            table = _drawn(section, kept, note, roomy)
            if Console(width=10_000).measure(table).maximum <= width:
                return table
        droppable = [i for i in kept if section.heads[i].leaves]
        if not droppable:
            return table
        kept.remove(min(droppable, key=lambda i: section.heads[i].leaves))
        missing = len(section.heads) - len(kept)
        note = sentences([section.note, f"{file} has {missing} more column{'s' * (missing > 1)}"])


def _drawn(section: Section, kept: Sequence[int], note: str, roomy: bool) -> Table:
    table = Table(
        title=escape_markup(section.title),
        caption=escape_markup(note),
        title_style="bold",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, int(roomy), 0, 0),
    )
    most = 10_000 if section.sentences else MAX_CELL
    for i in kept:
        table.add_column(
            escape_markup(section.heads[i].title),
            justify="left" if i < section.num_words else "right",
            no_wrap=not section.sentences,
        )
    for line in section.cells:
        table.add_row(*(escape_markup(shortened(line[i], most)) for i in kept))
    return table


def markdown(section: Section) -> str:
    """Write a table in Markdown, without heading and note; cells are not padded, so that one new
    value changes one line.
    """
    rule = ["---"] * section.num_words
    rule += ["---:"] * (len(section.heads) - section.num_words)
    heads, *cells = (
        [text.replace("|", r"\|").replace("<", "&lt;") for text in line]
        for line in ([head.text for head in section.heads], *section.cells)
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *cells))


def escape_markdown(text: str) -> str:
    r"""Return Markdown in which names from rows are neither links nor HTML; reports themselves
    contain none.

    >>> print(escape_markdown("![a](http://b) <img> p < 0.05"))
    ![a]\(http://b) &lt;img> p < 0.05
    """
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("](", r"]\(")


def latex(section: Section, label: str) -> str:
    """Write a table in LaTeX with booktabs, as a longtable if it has many lines."""
    is_long = len(section.cells) > MAX_LATEX_LINES
    caption = sentences([section.title, section.note]) if section.note else section.title
    table = section.frame.map(escape_latex).rename(columns=escape_latex).style.hide(axis="index")
    text: str = table.to_latex(
        column_format="l" * section.num_words + "r" * (len(section.heads) - section.num_words),
        hrules=True,
        caption=escape_latex(caption),
        label=f"tab:{label}",
        environment="longtable" if is_long else None,
        position_float=None if is_long else "centering",
    )
    return text


def escape_latex(text: str) -> str:
    r"""Escape the characters that are special in LaTeX.

    >>> escape_latex("top_skip & 50%")
    'top\\_skip \\& 50\\%'
    """
    return text.translate(_LATEX)


def to_csv(records: Sequence[Record]) -> str:
    """Write all plain values of records as CSV, one line per record, under the keys of a row."""
    lines, settings = [], [key for key in varying(records) if "." in key]
    for record in ordered(records):
        derived = {
            "kept_layers": " ".join(map(str, record.kept_layers or ())),
            "strategy_options": " ".join(map(str, record.strategy_options.values())),
            "correction": record.correction.label if record.correction else None,
            "speedup_pairs": record.num_pairs,
        }
        options = {key: text for key in settings if (text := setting_text(record, key)) != MISSING}
        lines.append({**record.to_row(), **options, **derived, "folder": record.folder})
    order = [*Record.model_fields, *metric_keys(), "speedup_pairs"]
    plain = {
        key for line in lines for key, value in line.items() if isinstance(value, str | int | float)
    }
    return csv_text(lines, [*(key for key in order if key in plain), *sorted(plain - set(order))])


def csv_text(lines: Sequence[Mapping[str, object]], heads: Sequence[str]) -> str:
    """Return lines as CSV. Texts that a spreadsheet would run as a formula get a leading quote."""
    plain = [{head: _without_formula(line.get(head)) for head in heads} for line in lines]
    frame = pd.DataFrame(plain, columns=list(heads), dtype=object)
    text: str = frame.rename(columns=_without_formula).to_csv(index=False, lineterminator="\n")
    return text


def _without_formula(value: object) -> object:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return value


def write_tables(folder: ResultsFolder) -> None:
    """Write table.md and table.csv from all records of a folder."""
    records = [displayed(record, folder.path) for record in folder.records()]
    long = long_section(records)
    text = "\n\n".join([f"# {long.title}", markdown(long), long.note, provenance(records)])
    write_atomic(folder.path / "table.md", escape_markdown(text) + "\n")
    write_atomic(folder.path / "table.csv", to_csv(records))


def title(records: Sequence[Record]) -> str:
    """Name what all finished records share (all records if none is finished)."""
    records = done(records) or records
    forms = {
        **dict.fromkeys((*NAMES[:3], "dataset", NAMES[3]), "{}"),
        "batch_size": "batch {}",
        "num_examples": "{} examples",
    }
    shared = {key: {record.value(key) for record in records} for key in forms}
    return " · ".join(
        forms[key].format(*values)
        for key, values in shared.items()
        if len(values) == 1 and any(values)
    )


def provenance(records: Sequence[Record]) -> str:
    """State the code, the machine and the weights of the records, one line per machine and
    versions of packages, with all commits and weights.
    """
    used: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for record in ordered(records):
        if facts := record.environment:
            commit = (facts.git_commit or "no commit")[:10] + " (modified)" * bool(facts.git_dirty)
            chip = f"{facts.processor}, {facts.threads} threads, {facts.instruction_set}"
            packages = f"torch {facts.packages.torch}, transformers {facts.packages.transformers}"
            line = f"{packages}; {facts.accelerator or chip}, {record.dtype}"
            commits, trained = used.setdefault(line, ({}, {}))
            commits[f"{facts.ulskip} at {commit}"] = trained[weights(record)] = None
    return "  \n".join(
        f"ulskip {', '.join(commits)}; {line}; {', '.join(trained)}."
        for line, (commits, trained) in used.items()
    )


def weights(record: Record) -> str:
    """Name the weights of a record, and state their training if it is known."""
    known = f" trained {record.training}" if record.training else ""
    return f"weights of {record.model}{known}"


def interval_notes(records: Sequence[Record]) -> list[str]:
    """Explain how the intervals of measured speedups were computed."""
    timed = [record for record in records if record.measured_speedup is not None]
    counts = sorted({record.num_pairs for record in timed if record.num_pairs})
    pairs = f"{' or '.join(map(str, counts))} pairs" if counts else "the pairs"
    coverages = [record.speedup_interval_coverage for record in timed]
    known = [coverage for coverage in coverages if coverage is not None]
    notes: list[str] = []
    if known:
        notes.append(
            f"Interval: order statistics of {pairs}; it contains the median with at least"
            f" {min(known):.1%} probability."
        )
    if None in coverages:
        older = "Interval of rows from earlier versions" if known else "Interval"
        notes.append(
            f"{older}: 95% percentile bootstrap over {pairs}; with 7 pairs it contains the median"
            " in about 90% of cases."
        )
    return notes


def explanations(records: Sequence[Record]) -> list[str]:
    """Explain the marks and columns of the long table, one note per item."""
    judged = [record for record in records if record.vs_baseline]
    few = [record for record in judged if record.has_few_examples]
    notes = [STARS] if len(few) < len(judged) else []
    if few:
        notes.append(f"Fewer than {MIN_FOR_STARS} examples are too few for a star.")
    if any(record.measured_speedup is not None for record in records):
        notes += [MEASURED, *interval_notes(records)]
    if any(record.total_tokens_per_second is not None for record in records):
        notes.append(
            "Tok/s: tokens per second over the evaluated answers; total includes the prompt."
            " Answers differ in length, so these rates do not compare strategies."
        )
    if any(
        record.decode_loss is None and record.measured_speedup is not None and record.task
        for record in records
    ):
        notes.append("Rows without quality have random weights.")
    return [*notes, *reasons(records)]


def sentences(parts: Iterable[str]) -> str:
    """Join notes to a paragraph, each with a full stop.

    >>> sentences(["One.", "", "Two"])
    'One. Two.'
    """
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)
