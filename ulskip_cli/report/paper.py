"""What a sweep leaves for a paper: the table-4 layout and the plot, made anew from all rows of a folder."""

from pathlib import Path

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import settings, table, table4
from ulskip_cli.report.groups import grouped
from ulskip_cli.report.plot import quality_against_speedup
from ulskip_cli.report.status import done


def write_paper_report(folder: ResultsFolder) -> list[Path]:
    """Write table4.md, and quality.png and .svg of the newest row's setting at its smallest batch.

    Returns:
        The files.
    """
    rows = settings.told(folder.rows())
    text = f"# {table.title(rows)}\n\n{table4.markdown(table4.tables(rows))}\n{table.provenance(rows)}\n"
    write_atomic(folder.path / "table4.md", text)
    finished = done(rows)
    if not finished:
        return [folder.path / "table4.md"]
    alike = next(group.rows for group in grouped(finished) if any(row is finished[-1] for row in group.rows))
    smallest = min(row["batch_size"] for row in alike)
    drawn = table.ordered([row for row in alike if row["batch_size"] == smallest])
    return [folder.path / "table4.md", *quality_against_speedup(drawn, folder.path / "quality", table.title(drawn))]
