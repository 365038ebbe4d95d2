"""What became of a point: done, not served by its strategy, or failed."""

from collections.abc import Iterable, Sequence

from ulskip_cli.experiments.record import DONE, FAILED, NOT_APPLICABLE, Row, is_done

MISSING = "–"
_WORDS = {NOT_APPLICABLE: "N/A", FAILED: "failed"}
MOST_REASONS = 5


def status(row: Row) -> str:
    """`done`, `n/a` or `failed`; rows from before there was a status are done.

    >>> status({}), status({"status": "n/a"})
    ('done', 'n/a')
    """
    return str(row.get("status") or DONE)


def done(rows: Iterable[Row]) -> list[Row]:
    """The rows that have something measured."""
    return [row for row in rows if is_done(row)]


def absent(row: Row) -> str:
    """What stands in a cell that a row has no value for: N/A as in the paper's tables, failed, or a dash.

    >>> absent({"status": "n/a"}), absent({})
    ('N/A', '–')
    """
    return _WORDS.get(status(row), MISSING)


def reasons(rows: Sequence[Row]) -> list[str]:
    """A line for every way in which points came to nothing, with the strategies that it befell."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        if not is_done(row):
            befell = found.setdefault((absent(row), str(row.get("reason") or "no reason given")), {})
            befell[str(row.get("strategy"))] = befell.get(str(row.get("strategy")), 0) + 1
    lines = [f"{word} ({', '.join(befell)}): {reason}" for (word, reason), befell in found.items()]
    more = len(lines) - MOST_REASONS
    return [*lines[:MOST_REASONS], *([f"and {more} reasons more"] if more > 0 else [])]
