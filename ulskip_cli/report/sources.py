"""Which rows a report is made from: those of the named folders, and nothing else."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import settings

FILE = "runs.jsonl"
MOST_KNOWN = 8  # folders that a message names


def folders(named: Sequence[Path], results_dir: Path) -> list[Path]:
    """The folders of results that are meant.

    Args:
        named: folders of results, folders of such folders, or their runs.jsonl; empty: all under `results_dir`.
        results_dir: where results usually are.

    Raises:
        UsageError: one of them has no results.
    """
    found: dict[Path, None] = {}
    for path in named or [results_dir]:
        own = path.parent if path.name == FILE else path
        below = [own] if (own / FILE).is_file() else sorted(file.parent for file in own.glob(f"*/{FILE}"))
        if not below:
            if (own / "generations").is_dir():
                raise UsageError(f"no point of '{path}' is finished yet; the command that began it carries on")
            known = [str(file.parent) for file in sorted(results_dir.glob(f"*/{FILE}"))]
            more = f" and {len(known) - MOST_KNOWN} more" if len(known) > MOST_KNOWN else ""
            hint = f"known: {', '.join(known[:MOST_KNOWN])}{more}" if known else "`ulskip sweep` makes some"
            raise UsageError(f"expected a folder of results with {FILE}, or a folder of such folders, got '{path}'; {hint}")
        found.update(dict.fromkeys(below))
    return list(found)


def read(paths: Sequence[Path]) -> list[Row]:
    """All rows of some folders, each with the `folder` that it comes from; a line on stderr for files with broken ones.

    Raises:
        UsageError: there is none.
    """
    rows = []
    for path in paths:
        found, broken = ResultsFolder(path).rows_and_broken()
        rows += [{**row, "folder": str(path)} for row in found]
        if broken:
            print(f"ulskip: {broken} line{'s' * (broken > 1)} of {path / FILE} could not be read: left out", file=sys.stderr)
    if not rows:
        raise UsageError(f"expected at least one row in {', '.join(map(str, paths))}; `ulskip sweep` makes some")
    return settings.told(rows)


def generations(row: Row) -> list[Row]:
    """What a row's run generated; nothing where it was not stored."""
    return ResultsFolder(Path(row["folder"])).generations(row["id"])
