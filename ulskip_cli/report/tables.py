"""Tables as text for a terminal, in Markdown and as CSV."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import DETECTED, MIN_FOR_STARS, Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import (
    NAMES,
    all_settings,
    differences,
    key_title,
    setting_text,
)
from ulskip_cli.experiments.statistics import primary
from ulskip_cli.report.columns import (
    ABSENT,
    COLUMNS,
    MISSING,
    Column,
    bandwidth_share,
    decode_rate,
    first_columns,
    is_significant,
    read_rate,
    timed_layers,
)
from ulskip_cli.report.rows import (
    differing_options,
    done,
    ordered,
    reasons,
    stored,
)
from ulskip_cli.tasks.metrics import AGREEMENT

TABLE_FILE = "table.md"
MAX_CELL = 24  # characters per cell on a terminal
STARS = (
    "A star (*) marks a score that differs from the full model's: the 95% interval of the"
    " difference (paired bootstrap, not corrected for the number of comparisons) excludes zero; a"
    f" row of fewer than {MIN_FOR_STARS} examples has none."
)
MEASURED = (
    "Measured: decode seconds of the full model divided by those of the strategy, in timed pairs."
)
INTERVAL = "Interval: 95%, of the timed units and of the spread between processes."
FULL_IN = "Full in: the engine of the full model that is compared, if it is another one."
BANDWIDTH = (
    "Of bandwidth: the rate at which a step reads weights, keys and values, as a share of the rate"
    " at which this machine read memory in the same pairs"
)
RATES = (
    "Decode tok/s: decoded tokens per second in the timed pairs; full tok/s: of the full model in"
    " the same pairs. Rows were timed one after the other, so compare speedups."
)
DEPTHS = (
    "Timed layers: mean number of layers in the timed pairs, to which speedup and tok/s belong; the"
    " scores belong to the other number."
)
NO_REFERENCES = (
    "The prompts have no references: the score is the agreement, the share of the tokens of the"
    " full model's answers that the strategy also finds most likely."
)

# The beginning of a text that a spreadsheet would run as a formula; a number is none.
FORMULA = r"^(?=[=+\-@\t\r])(?![+-][\d.]+(e[+-]?\d+)?\Z)"
EMPTY = {MISSING, *ABSENT.values()}


@dataclass(frozen=True)
class TableSection:
    """A table of texts with heading and note, independent of the output format."""

    title: str
    columns: list[Column]
    cells: list[list[str]]
    note: str = ""
    words: int = 1  # number of first columns that hold words, aligned left

    @property
    def anchor(self) -> str:
        """The id of the section on a page."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    @property
    def heads(self) -> list[str]:
        """The titles of the columns, each on one line."""
        return [column.head for column in self.columns]

    @classmethod
    def of(
        cls,
        title: str,
        lines: Sequence[object],
        columns: Iterable[Column],
        note: str = "",
        words: int = 1,
    ) -> "TableSection":
        """Make a table with a line for each object; columns without any value are left out."""
        shown, texts = list[Column](), list[list[str]]()  # texts by column
        for column in columns:
            cells = [cell(line, column) for line in lines]
            if set(cells) - EMPTY:
                shown.append(column)
                texts.append(cells)
        rows = list(map(list, zip(*texts, strict=True)))
        return cls(title, shown, rows, note, words)


def cell(line: object, column: Column) -> str:
    """Return the text of a cell; without a value, why the record has none, or a dash."""
    value = column.value(line)
    if value is None:
        return ABSENT.get(getattr(line, "status", ""), MISSING)
    return format(value, column.form)


def long_section(records: Sequence[Record]) -> TableSection:
    """Make the table of all values, with the settings in which the records differ."""
    records = ordered(records)
    return _section(records, [*COLUMNS, *harness_columns(records)], explanations(records))


def short_section(records: Sequence[Record]) -> TableSection:
    """Make the table for a first look: layers, speedup and quality."""
    records = ordered(records)
    metrics = {record.primary for record in records if record.primary}
    notes = []
    if any(is_significant(record, metric) for metric in metrics for record in records):
        notes.append(STARS)
    if AGREEMENT.key in metrics:
        notes.append(NO_REFERENCES)
    if not metrics:  # benchmarks, whose columns of bandwidth need notes
        notes += _speed_notes(records)
    columns = [*first_columns(metrics), *harness_columns(records)]
    return _section(records, columns, [*notes, *reasons(records)])


def _section(
    records: Sequence[Record], columns: Sequence[Column], notes: Iterable[str]
) -> TableSection:
    """Make a table of records, with their settings behind the first column, the strategy."""
    strategy, *measured = columns
    shown = [strategy, *setting_columns(records), *measured]
    return TableSection.of(title(records), records, shown, sentences(notes))


def _speed_notes(records: Sequence[Record]) -> Iterator[str]:
    if any(record.full_engine for record in records):
        yield FULL_IN
    rates = [read_rate(record) or 0.0 for record in records if bandwidth_share(record)]
    if rates:
        lowest, highest = f"{min(rates) / 1e9:.0f}", f"{max(rates) / 1e9:.0f}"
        span = lowest if lowest == highest else f"{lowest} to {highest}"
        yield f"{BANDWIDTH}: {span} GB/s"


def setting_columns(records: Sequence[Record]) -> list[Column]:
    """Return the columns of settings in which records differ; of options, if the label does not
    tell them.
    """

    def show(record: Record, key: str) -> str:
        return setting_text(record, key) or MISSING

    options = differing_options(records, lambda record: record.label)
    # The target has a column of its own, and the label tells the other options.
    others = differences(
        all_settings(records),
        except_sections=("strategy", "correction", "ratio"),
        always=(*NAMES, *DETECTED, "batch_size"),
    )
    columns = []
    for key in dict.fromkeys([*options, *others]):
        head = key_title(key).replace(" ", "\n")
        columns.append(Column(head, partial(show, key=key), optional=key not in NAMES))
    return columns


def harness_columns(records: Sequence[Record]) -> list[Column]:
    """Make a column for each score of lm-evaluation-harness. Its key is a metric, e.g. `acc`, or
    with a filter, e.g. `acc strict-match`; `acc_stderr` has the standard error.
    """

    def show(record: Record, key: str) -> str | None:
        scores = record.lm_eval or {}
        if key not in scores:
            return None
        metric, space, filters = key.partition(" ")
        error = scores.get(f"{metric}_stderr{space}{filters}")
        return f"{scores[key]:.4g}±{error:.2g}" if error else f"{scores[key]:.4g}"

    keys = dict.fromkeys(key for record in records for key in record.lm_eval or {})
    return [
        Column(key.replace("_", "\n", 1), partial(show, key=key))
        for key in keys
        if "_stderr" not in key
    ]


def draw(section: TableSection, width: int, file: str) -> Table:
    """Draw a table for a terminal of `width` characters. If columns do not fit, drop optional ones
    from the right and name the complete `file`.
    """
    # A table without spaces between columns is better than one with a column less.
    spaces = (1, 0) if width >= 100 else (0,)
    shown, notes = list(range(len(section.columns))), [section.note]
    while True:
        for space in spaces:
            table = _drawn(section, shown, sentences(notes), space)
            if Console(width=10_000, markup=False).measure(table).maximum <= width:
                return table
        optional = [index for index in shown if section.columns[index].optional]
        if not optional:
            return table
        shown.remove(optional[-1])
        missing = len(section.columns) - len(shown)
        noun = "column" if missing == 1 else "columns"
        notes = [section.note, f"{file} has {missing} more {noun}"]


def _drawn(section: TableSection, shown: Sequence[int], note: str, space: int) -> Table:
    """Draw the columns with the indices `shown`, `space` characters apart."""
    table = Table(
        title=section.title,
        caption=note,
        title_style="bold",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, space, 0, 0),
    )
    for index in shown:
        side: Literal["left", "right"] = "left" if index < section.words else "right"
        table.add_column(section.columns[index].title, justify=side, no_wrap=True)
    for line in section.cells:
        table.add_row(*(shortened(line[index], MAX_CELL) for index in shown))
    return table


def shortened(text: str, most: int) -> str:
    """Return at most `most` characters; the beginning of a long text is cut."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def markdown(section: TableSection) -> str:
    """Write a table in Markdown, without heading and note."""
    heads, *lines = (
        [text.replace("|", r"\|").replace("<", "&lt;") for text in line]
        for line in (section.heads, *section.cells)
    )
    return markdown_table(heads, lines, min(section.words, len(heads)))


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    """Write a table, its first `words` columns aligned left; cells are not padded, so that a new
    value changes one line.
    """
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def with_heading(section: TableSection) -> str:
    """Write a table in Markdown with its heading and note."""
    return "\n\n".join(filter(None, [f"## {section.title}", markdown(section), section.note]))


def escape_markdown(text: str) -> str:
    r"""Return Markdown in which names from rows are neither links nor HTML; reports themselves
    contain none.

    >>> print(escape_markdown("![a](http://b) <img> p < 0.05"))
    ![a]\(http://b) &lt;img> p < 0.05
    """
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("](", r"]\(")


def write_markdown(file: Path, records: Sequence[Record], parts: Iterable[str]) -> None:
    """Write a report: heading, parts that are not empty, and provenance."""
    whole = [f"# {title(records)}".rstrip(), *parts, provenance(records)]
    write_atomic(file, escape_markdown("\n\n".join(filter(None, whole)) + "\n"))


def to_csv(records: Sequence[Record]) -> str:
    """Write records as CSV under the keys of a row, without timed pairs. Texts that a spreadsheet
    would run as a formula get a leading quote.
    """
    import pandas  # here, because it would delay every command

    rows = pandas.json_normalize([record.to_row() | {"pairs": None} for record in records])
    safe = rows.dropna(axis="columns", how="all").replace(FORMULA, "'", regex=True)
    return str(safe.to_csv(index=False, lineterminator="\n"))


def write_tables(folder: ResultsFolder) -> None:
    """Write table.md and table.csv of a folder."""
    records = stored(folder)
    write_atomic(folder.path / "table.csv", to_csv(ordered(records)))
    long = long_section(records)
    write_markdown(folder.path / TABLE_FILE, records, [markdown(long), long.note])


def title(records: Sequence[Record]) -> str:
    """Name what all finished records share (all records if none is finished)."""
    records = done(records) or records
    facts = [
        (
            *map(record.value, ("model", "task", "pair", "dataset", "decoding")),
            f"batch {record.batch_size}",
            f"{record.num_examples} examples" if record.num_examples else None,
            random_prompts(record),
        )
        for record in records
    ]
    shared = [values[0] for values in zip(*facts, strict=True) if len(set(values)) == 1]
    return " · ".join(str(fact) for fact in shared if fact)


def random_prompts(record: Record) -> str | None:
    """Return the lengths of random prompts and answers; None for a task's prompts."""
    speed = record.config.speed
    if record.command != "bench":
        return None
    return f"random prompts of {speed.prompt_tokens} tokens, {speed.new_tokens} new ones"


def provenance(records: Sequence[Record]) -> str:
    """State code, machine and weights in Markdown, one line per machine and versions of
    packages.
    """
    return "  \n".join(provenance_lines(records))


def provenance_lines(records: Sequence[Record]) -> list[str]:
    """Return the lines of `provenance`."""
    commits, weights = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for record in ordered(records):
        facts = record.environment
        if facts is None:
            continue
        packages = f"torch {facts.packages.torch}, transformers {facts.packages.transformers}"
        platform = f"{packages}; {facts.machine}, {record.dtype}"
        commits[platform].append(facts.version)
        trained = f" trained {record.training}" if record.training else ""
        weights[platform].append(f"weights of {record.model}{trained}")
    return [
        f"ulskip {_distinct(commits[platform])}; {platform}; {_distinct(weights[platform])}."
        for platform in commits
    ]


def _distinct(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def explanations(records: Sequence[Record]) -> list[str]:
    """Explain the marks and columns of the long table."""
    is_timed = any(record.measured_speedup is not None for record in records)
    notes = {
        STARS: any(record.vs_baseline for record in records),
        NO_REFERENCES: primary(records) == AGREEMENT.key,
        MEASURED: is_timed,
        INTERVAL: any(record.pairs and record.pairs.full for record in records),
        RATES: any(decode_rate(record) is not None for record in records),
        DEPTHS: any(map(timed_layers, records)),
    }
    shown = (note for note, applies in notes.items() if applies)
    return [*shown, *_speed_notes(records), *reasons(records)]


def sentences(parts: Iterable[str]) -> str:
    """Join notes into a paragraph, each with a full stop.

    >>> sentences(["One.", "", "Two"])
    'One. Two.'
    """
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)
