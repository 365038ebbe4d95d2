"""Names of a row's strategy, and of the patches and skip adapters that corrected its layers."""

from pathlib import Path
from typing import Any

from ulskip_cli.core.config import SKIPPING_KEYS
from ulskip_cli.core.config_schema import LAYER
from ulskip_cli.experiments.record import Row, is_done


def own_options(row: Row) -> dict[str, Any]:
    """Return the options of a row's strategy without its unit and those of its patches."""
    return {key: value for key, value in (row.get("strategy_options") or {}).items() if key not in SKIPPING_KEYS}


def strategy_name(row: Row) -> str:
    """Return the strategy of a row, with its unit unless it skips whole layers.

    >>> strategy_name({"strategy": "unified", "strategy_options": {"unit": "attention"}})
    'unified attention'
    """
    unit = (row.get("strategy_options") or {}).get("unit", LAYER)
    return str(row["strategy"]) if unit == LAYER else f"{row['strategy']} {unit}"


def series_name(row: Row) -> str:
    """Return the strategy of a row and its unit, with the kind of its patches or `adapter`.

    >>> series_name({"strategy": "unified", "patch": {"kind": "full", "rank": None}})
    'unified + full patch'
    """
    return f"{strategy_name(row)}{correction(row)}"


def correction(row: Row) -> str:
    """Return the text that follows a strategy with patches or a skip adapter; empty without a correction."""
    if adapter_names(row):
        return " + adapter"
    options = row.get("strategy_options") or {}  # of an unfinished row, which has no patch
    found = row.get("patch") or {"kind": options.get("patch"), "rank": options.get("patch_rank")}
    kind = f"low_rank {found['rank']}" if found["kind"] == "low_rank" else found["kind"]
    return f" + {kind} patch" if kind else ""


def adapter_names(row: Row) -> str | None:
    """Return the names of the skip adapters of a row's configuration, or None if none corrected its layers."""
    found = row.get("skip_adapter")
    asked = ((row.get("config") or {}).get("model") or {}).get("skip_adapter")
    if found is None and (is_done(row) or not asked):
        return None
    names = asked or ([] if found is None else [found["path"]])
    return ", ".join(Path(name).name for name in names)
