"""Tables as text for a terminal, Markdown, CSV and LaTeX."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.columns import AXES, MIN_FOR_STARS, Column, Section, cells_of, columns_for, few_examples, num_pairs
from ulskip_cli.report.rows import done, ordered, reasons, with_settings
from ulskip_cli.tasks.metrics import metric_keys

MAX_CELL = 24  # characters per cell on a terminal
MAX_LATEX_LINES = 40  # lines of a table on one page
TITLE = ("model", "task", "pair", "dataset", "decoding")
CSV_KEYS = (
    *("id", "experiment", "status", "reason", *AXES, "strategy", "num_layers", "kept_layers"),
    *("target_speedup", "layer_ratio", "predicted_speedup", "measured_speedup", "measured_speedup_low"),
    *("measured_speedup_high", "speedup_pairs", "end_to_end_speedup", "decode_tokens_per_second", "total_tokens_per_second"),
    *("prefill_seconds", "time_to_first_token_seconds", "time_per_output_token_seconds", "prompt_kv_bytes", "kept_kv_bytes"),
    *("peak_memory_bytes", *metric_keys()),
    *("decode_loss", "acceptance_rate", "mean_accepted_length", "length_ratio", "num_truncated_sources"),
    *("evaluated_batch_size", "device", "dtype", "quantization", "training", "seed", "finished_at"),
)
STARS = (
    "A star (*) marks a score that differs from the full model's (paired bootstrap, p < 0.05 for each comparison, not "
    "corrected for the number of comparisons)."
)
MEASURED = "Measured: decode seconds of the full model divided by those of the strategy, median of timed pairs."
LATEX_HEADER = "% needs \\usepackage{booktabs}, and longtable where a table is longer than a page"
_MARKDOWN_SPECIAL = str.maketrans({"|": r"\|", "<": "&lt;"})
_LATEX_NAMES = {"\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum", "<": "textless", ">": "textgreater"}
_LATEX_SPECIAL = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {char: f"\\{name}{{}}" for char, name in (_LATEX_NAMES | {"·": "textperiodcentered", "…": "ldots"}).items()}
    | {"–": "--", "*": r"\textsuperscript{*}"}
)


def long_section(rows: Sequence[Row]) -> Section:
    """Make the long table, one line per row, sorted."""
    rows = ordered(rows)
    return Section(title(rows), rows, columns_for(rows), footnote(rows), words=1)


def terminal(rows: Sequence[Row], width: int) -> Table:
    """Draw the long table for a terminal of `width` columns."""
    return draw(long_section(with_settings(rows)), width, "table.md")


def draw(section: Section, width: int, file: str) -> Table:
    """Draw a table for a terminal; if columns do not fit, drop the least important ones and name the complete file."""
    shown, note = list(section.columns), section.note
    while True:
        for roomy in [True] * (width >= 100) + [False]:
            table = _drawn(section, shown, note, roomy)
            if Console(width=10_000).measure(table).maximum <= width:
                return table
        if not any(column.leaves for column in shown):
            return table
        shown.remove(min((column for column in shown if column.leaves), key=lambda column: column.leaves))
        missing = len(section.columns) - len(shown)
        note = sentences([section.note, f"{file} has {missing} more column{'s' * (missing > 1)}"])


def _drawn(section: Section, columns: Sequence[Column], note: str, roomy: bool) -> Table:
    table = Table(title=escape_markup(section.title), caption=escape_markup(note), title_style="bold", box=SIMPLE_HEAD)
    table.padding = (0, int(roomy), 0, 0)
    table.title_justify = table.caption_justify = "left"
    for i, column in enumerate(columns):
        side: Literal["left", "right"] = "left" if i < section.words else "right"
        table.add_column(escape_markup(column.title), justify=side, no_wrap=True)
    for cells in cells_of(section.lines, columns):
        short = (cell if len(cell) <= MAX_CELL else f"…{cell[1 - MAX_CELL :]}" for cell in cells)
        table.add_row(*map(escape_markup, short))
    return table


def markdown(section: Section) -> str:
    """Write a table in Markdown, without heading and note."""
    heads = [column.head.translate(_MARKDOWN_SPECIAL) for column in section.columns]
    words = len(heads) if section.sentences else section.words
    rule = [*["---"] * words, *["---:"] * (len(heads) - words)]
    cells = [[cell.translate(_MARKDOWN_SPECIAL) for cell in line] for line in section.cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *cells))


def escape_markdown(text: str) -> str:
    r"""Return Markdown in which names of rows are neither links nor HTML; a report has none of its own.

    >>> print(escape_markdown("![a](http://b) <img> p < 0.05"))
    ![a]\(http://b) &lt;img> p < 0.05
    """
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("](", r"]\(")


def latex(section: Section, label: str) -> str:
    """Write a table in LaTeX with booktabs, as a longtable if it has many lines."""
    align = "l" * section.words + "r" * (len(section.columns) - section.words)
    head = _latex_line([column.head for column in section.columns])
    body = [_latex_line(line) for line in section.cells]
    caption = sentences([section.title, section.note]) if section.note else section.title
    title = rf"\caption{{{escape_latex(caption)}}}\label{{tab:{label}}}"
    if len(body) > MAX_LATEX_LINES:
        top = [rf"\begin{{longtable}}{{{align}}}", title + r" \\", r"\toprule", head, r"\midrule", r"\endfirsthead"]
        again = [r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        return "\n".join([*top, *again, *body, r"\end{longtable}", ""])
    top = [r"\begin{table}", r"\centering", title, rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(escape_latex, cells)) + r" \\"


def escape_latex(text: str) -> str:
    r"""Escape the characters that are special in LaTeX.

    >>> escape_latex("top_skip & 50%")
    'top\\_skip \\& 50\\%'
    """
    return text.translate(_LATEX_SPECIAL)


def to_csv(rows: Sequence[Row]) -> str:
    """Write all plain values as CSV, one line per row, under the row keys."""
    keys, lines = dict.fromkeys(CSV_KEYS), []
    for row in rows:
        if not row.keys() <= keys.keys():
            keys |= {key: None for key in row if key not in keys and isinstance(row[key], (str, int, float))}
    for row in ordered(rows):
        derived = {"kept_layers": " ".join(map(str, row.get("kept_layers") or ()))}
        lines.append({**row, **derived, "speedup_pairs": num_pairs(row)})
    return csv_text(lines, list(keys))


def csv_text(lines: Sequence[Row], heads: Sequence[str]) -> str:
    """Write lines as CSV; a quote begins a text that a spreadsheet would run as a formula."""
    plain = [{head: _without_formula(line.get(head)) for head in heads} for line in lines]
    frame = pd.DataFrame(plain, columns=list(heads), dtype=object).rename(columns=_without_formula)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _without_formula(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def write_tables(folder: ResultsFolder) -> None:
    """Write table.md and table.csv from all rows of a folder."""
    rows = with_settings(folder.rows())
    long = long_section(rows)
    text = "\n\n".join([f"# {long.title}", markdown(long), long.note, provenance(rows)])
    write_atomic(folder.path / "table.md", escape_markdown(text) + "\n")
    write_atomic(folder.path / "table.csv", to_csv(rows))


def title(rows: Sequence[Row]) -> str:
    """Name the settings that all finished rows share (all rows if no row is finished)."""
    rows = done(rows) or rows
    common = [str(values.pop()) for key in TITLE if len(values := {row.get(key) for row in rows}) == 1 and None not in values]
    sizes = {"batch_size": "batch {}", "num_examples": "{} examples"}
    shared = [key for key in sizes if len({row.get(key) for row in rows}) == 1 and rows[0].get(key)]
    return " · ".join([*common, *(sizes[key].format(rows[0][key]) for key in shared)])


def provenance(rows: Sequence[Row]) -> str:
    """State the code, the machine and the weights of the rows, one line per distinct combination."""
    return "  \n".join(dict.fromkeys(_provenance(row) for row in ordered(rows) if row.get("environment")))


def _provenance(row: Row) -> str:
    facts: dict[str, Any] = row["environment"]
    packages = facts["packages"]
    commit = (facts.get("git_commit") or "no commit")[:10] + (" (modified)" if facts.get("git_dirty") else "")
    processor = facts["accelerator"] or f"{facts['processor']}, {facts['threads']} threads, {facts['instruction_set']}"
    versions = f"ulskip {facts['ulskip']} at {commit}, torch {packages['torch']}, transformers {packages['transformers']}"
    return f"{versions}; {processor}, {row.get('dtype')}; weights of {row['model']} trained {row.get('training')}."


def interval_notes(rows: Sequence[Row]) -> list[str]:
    """Explain how the intervals of measured speedups were computed."""
    timed = [row for row in rows if row.get("measured_speedup") is not None]
    notes: list[str] = []
    counts = {count for row in timed if (count := num_pairs(row))}
    pairs = f"{' or '.join(map(str, sorted(counts)))} pairs" if counts else "the pairs"
    coverages = [row["speedup_interval_coverage"] for row in timed if row.get("speedup_interval_coverage") is not None]
    if coverages:
        notes.append(
            f"Interval: order statistics of {pairs}; it contains the median with at least {min(coverages):.1%} probability."
        )
    if len(coverages) < len(timed):
        older = "Interval of the other rows" if coverages else "Interval"
        notes.append(
            f"{older}: 95% percentile bootstrap over {pairs}; with 7 pairs it contains the median in about 90% of cases."
        )
    return notes


def footnote(rows: Sequence[Row]) -> str:
    """Return the notes of the long table as one paragraph."""
    return sentences(explanations(rows))


def explanations(rows: Sequence[Row]) -> list[str]:
    """Explain the marks and columns of the long table, one note per item."""
    judged = [row for row in rows if row.get("vs_baseline")]
    few = [row for row in judged if few_examples(row)]
    notes = [STARS] if len(few) < len(judged) else []
    if few:
        notes.append(f"Fewer than {MIN_FOR_STARS} examples are too few for a star.")
    if any(row.get("measured_speedup") is not None for row in rows):
        notes += [MEASURED, *interval_notes(rows)]
    if any(row.get("total_tokens_per_second") is not None for row in rows):
        notes.append(
            "Tok/s: tokens per second over the evaluated answers; total includes the prompt. Answers differ in length, so "
            "these rates do not compare strategies."
        )
    if any(row.get("decode_loss") is None and row.get("measured_speedup") is not None and row.get("task") for row in rows):
        notes.append("Rows without quality have random weights.")
    return [*notes, *reasons(rows)]


def sentences(parts: Sequence[str]) -> str:
    """Join notes to a paragraph, each with a full stop.

    >>> sentences(["One.", "", "Two"])
    'One. Two.'
    """
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)
