"""What `ulskip report` does: rows in, tables, pictures and a page out. Nothing is measured, and no model is loaded."""

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import write_atomic
from ulskip_cli.report import examples, latex, screen, table, table4
from ulskip_cli.report.gallery import Beside, Wall
from ulskip_cli.report.gathered import Options, Report
from ulskip_cli.report.page import Page

FOLDER = "report"
NO_TERMINAL = 100  # columns, where the output goes into a file or a pipe


@contextmanager
def _uncollected() -> Iterator[None]:
    """Many objects are made and few thrown away: looking for garbage in between would take a sixth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_uncollected()
def run(options: Options) -> None:
    """Make a report and show it."""
    made = Report.of(options)
    if options.form != "terminal" and not options.as_json:
        print(made.text(options.form, options.layout or "table4"), end="")
        return
    written = write(made)
    if options.as_json:
        print(json.dumps(made.told(written), ensure_ascii=False))
        return
    screen.show(made, Console(width=None if sys.stdout.isatty() else NO_TERMINAL), written)


def write(made: Report) -> list[Path]:
    """Write all files of a report.

    Returns:
        The files.
    """
    options = made.options
    folder = options.output or _home(made.paths) / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write the report to {folder} ({reason}); --output=FOLDER puts it elsewhere") from None
    wall = Wall(made.groups if options.plots else (), options.gate, folder, options.page)
    with Beside(wall) as beside:
        texts = {
            "report.md": _markdown(made),
            "long.csv": made.text("csv", "long"),
            "long.tex": f"{latex.HEADER}\n{made.text('latex', 'long')}",
            "table4.csv": made.text("csv", "table4"),
            "table4.tex": f"{latex.HEADER}\n{made.text('latex', 'table4')}",
        }
        for name, text in texts.items():
            write_atomic(folder / name, text)
        answers = examples.collect(made.rows, options.most) if options.page else None
        pictures = beside.pictures()
    written = [*(folder / name for name in texts), *(file for one in pictures for file in one.files)]
    if answers is not None:
        page = Page(made.groups, made.rows, options.gate, made.winners, pictures, answers, made.sections)
        write_atomic(folder / "report.html", page.html())
        written.append(folder / "report.html")
    return written


def _markdown(made: Report) -> str:
    parts = [
        f"# {table.title(made.rows)}".rstrip(),
        "## In the layout of the paper's table 4",
        table4.markdown(made.tables).strip(),
    ]
    for label, found in made.winners.items():
        heading = f"## Winners{f', {label}' if len(made.winners) > 1 else ''}"
        lines = [f"Among points that keep {made.options.gate:.0%} of full's quality:", ""]
        for one in found:
            told = "; ".join(f"{name} {figure}" for name, figure in zip(one.names, one.figures, strict=True))
            note = f" ({one.note})" if one.note and told else one.note
            lines.append(f"- {one.title}: {'a tie of ' if one.tie else ''}{told}{note}")
        parts += [heading, "\n".join(lines)]
    for section in made.sections:
        words = len(section.columns) if section.sentences else section.words
        parts += [f"## {section.title}", table.grid(section.lines, section.columns, words), section.note]
    long = table.piped(made.cells, made.columns)
    parts += ["## All points", long, table.footnote(made.rows), table.provenance(made.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _home(paths: Sequence[Path]) -> Path:
    """The folder itself, or the one that several have in common."""
    if len(paths) == 1:
        return paths[0]
    return paths[0].parent
