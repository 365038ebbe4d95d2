"""Names of a row's strategy, and of the patches and skip adapters that corrected its layers."""

from pathlib import Path
from typing import Any

from ulskip_cli.core.strategy import LAYER
from ulskip_cli.experiments.record import Row, is_done


def own_options(row: Row) -> dict[str, Any]:
    """Return the options of a row's strategy without its unit."""
    return {key: value for key, value in (row.get("strategy_options") or {}).items() if key != "unit"}


def strategy_name(row: Row) -> str:
    """Return the strategy of a row, with its unit unless it skips whole layers.

    >>> strategy_name({"strategy": "unified", "strategy_options": {"unit": "attention"}})
    'unified attention'
    """
    unit = (row.get("strategy_options") or {}).get("unit", LAYER)
    return str(row["strategy"]) if unit == LAYER else f"{row['strategy']} {unit}"


def series_name(row: Row) -> str:
    """Return the strategy of a row and its unit, with the kind of its patches or `adapter`.

    >>> series_name({"strategy": "unified", "status": "done", "patch": {"kind": "full", "rank": None}})
    'unified + full patch'
    """
    return f"{strategy_name(row)}{correction(row)}"


def correction(row: Row) -> str:
    """Return the text that follows a strategy with patches or a skip adapter; empty without a correction."""
    if adapter_names(row):
        return " + adapter"
    patch = row.get("patch")
    if patch is None:  # an unfinished row names what was asked for
        label = None if is_done(row) else row.get("correction")
    else:
        label = f"low_rank {patch['rank']}" if patch["kind"] == "low_rank" else patch["kind"]
    if label == "adapter":
        return " + adapter"
    return f" + {label} patch" if label else ""


def adapter_names(row: Row) -> str | None:
    """Return the names of the skip adapters of a row's configuration, or None if none corrected its layers."""
    adapter = row.get("skip_adapter")
    asked = ((row.get("config") or {}).get("correction") or {}).get("path")
    if adapter is None and (is_done(row) or not asked):
        return None
    names = asked or ([] if adapter is None else [adapter["path"]])
    return ", ".join(Path(name).name for name in names)
