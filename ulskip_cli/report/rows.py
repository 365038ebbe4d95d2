"""Rows of results folders: reading, status, settings, order and groups."""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.printable import all_printable, printable
from ulskip_cli.experiments.record import FAILED, NOT_APPLICABLE, Row, is_done
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.corrections import adapter_names, correction, own_options, strategy_name

FILE = "runs.jsonl"
MAX_FOLDERS_NAMED = 8
MAX_REASONS = 5
MISSING = "–"
_STATUS_CELLS = {NOT_APPLICABLE: "N/A", FAILED: "failed"}
ALWAYS_NAMED = ["model", "task", "pair", "decoding"]  # parts of every group's label
SETTINGS = (
    *("folder", *ALWAYS_NAMED, "dataset", "draft_tokens", "num_examples", "prompt_layers", "ratio_basis", "chat"),
    *("engine", "engine_weights", "baseline_engine", "offset", "quantization", "dtype", "device", "seed"),
)
_METHOD_ENGINES = ("early_exit", "speculative")  # the strategy or the drafts choose them, not `engine=`
_CONFIG_KEYS = {"baseline_engine": None, "offset": 0}  # settings of the configuration alone, with their defaults
# Parts of a configuration, with the keys that are not settings: rows hold them elsewhere, or they change no result.
_CONFIG_PARTS = {
    "model": {"name", "path", "source", "dtype", "device", "device_map", "quantization"},
    "task": {"name", "dataset", "pair", "file", "source_file", "reference_file", "metrics"},
    "decoding": {"name", "draft_tokens"},
    "calibration": {"task"},
    "correction": {"name", "kind", "rank", "path"},
    "speed": {"enabled", "pairs", "warmup"},
}
# Rows without any of these keys do not use that part.
_PART_NEEDS = {"correction": ("patch",), "calibration": ("calibration", "patch"), "speed": ("measured_speedup",)}
_UNKNOWN = "\0"  # placeholder for a setting that a row does not have


@dataclass(frozen=True)
class Group:
    """Rows that differ only in strategy, target and batch size."""

    label: str  # the shared settings in which groups differ
    rows: list[Row]

    @property
    def batches(self) -> list[int]:
        """All batch sizes, ascending."""
        return sorted({row["batch_size"] for row in self.rows})

    @cached_property
    def _options(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for row in self.rows:
            found[str(row["strategy"])].add(json.dumps(own_options(row), sort_keys=True))
        return found

    @cached_property
    def _adapters(self) -> dict[str, bool]:
        """True for a strategy that some target and batch size has with several skip adapters."""
        found: dict[tuple[Any, ...], set[str]] = defaultdict(set)
        for row in self.rows:
            if names := adapter_names(row):
                found[row["strategy"], row.get("target_speedup"), row["batch_size"]].add(names)
        several: dict[str, bool] = defaultdict(bool)
        for (name, *_), adapters in found.items():
            several[str(name)] |= len(adapters) > 1
        return several

    def approach(self, row: Row) -> str:
        """Name a row's strategy, its unit and its patches or skip adapter.

        Options and adapters are named if the group contains the strategy with different ones.
        """
        name, strategy = strategy_name(row), str(row["strategy"])
        options = " ".join(str(value) for value in own_options(row).values())
        label = f"{name} {options}" if options and len(self._options[strategy]) > 1 else name
        adapter = adapter_names(row)
        return f"{label} + adapter {adapter}" if adapter and self._adapters[strategy] else label + correction(row)

    def points(self) -> dict[tuple[float, str], dict[int, Row]]:
        """Return the last row of every target, approach and batch size, in the order of the paper's table 4."""
        found: dict[tuple[float, str], dict[int, Row]] = defaultdict(dict)
        rows = [row for row in self.rows if row.get("target_speedup") is not None]
        for row in sorted(rows, key=lambda row: point_order((row["target_speedup"], row["strategy"]))):
            found[row["target_speedup"], self.approach(row)][row["batch_size"]] = row
        return found


def point_order(point: tuple[float, str]) -> tuple[float, bool, str]:
    """Return the sort key of a target and approach: sort by target, then by name with unified last."""
    return point[0], point[1] == "unified", point[1]


def find_folders(named: Sequence[Path], results_dir: Path) -> list[Path]:
    """List the results folders that folders, parent folders or runs.jsonl files name; by default, all in `results_dir`."""
    found: dict[Path, None] = {}
    for path in named or [results_dir]:
        own = path.parent if path.name == FILE else path
        below = [own] if (own / FILE).is_file() else sorted(file.parent for file in own.glob(f"*/{FILE}"))
        if not below:
            if (own / "generations").is_dir():
                raise UsageError(f"expected finished points in '{path}', got none; repeat the run's command to resume it")
            known = [str(file.parent) for file in sorted(results_dir.glob(f"*/{FILE}"))]
            more = f" and {len(known) - MAX_FOLDERS_NAMED} more" if len(known) > MAX_FOLDERS_NAMED else ""
            hint = f"known: {', '.join(known[:MAX_FOLDERS_NAMED])}{more}" if known else "make one with `ulskip sweep`"
            raise UsageError(f"expected a folder of results with {FILE}, or a folder of such folders, got '{path}'; {hint}")
        found.update(dict.fromkeys(below))
    for path in found:
        if not str(path).isprintable():
            raise UsageError(f"expected a folder with a printable name, got '{printable(str(path))}'; rename it")
    return list(found)


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Read the rows of results folders, add folder and settings to each row, and warn about refused lines."""
    rows = []
    for path in paths:
        rows += [{**row, "folder": str(path)} for row in ResultsFolder(path).rows(warn=True)]
    if not rows:
        raise UsageError(f"expected at least one row in {', '.join(map(str, paths))}, got none; run `ulskip sweep` first")
    return with_settings(rows)


def read_answers(row: Row) -> list[Row]:
    """Read the stored answers of a row's run; return an empty list if there are none, with a warning if one is damaged."""
    try:
        return ResultsFolder(Path(row["folder"])).generations(row["id"])
    except UsageError as error:
        print(f"ulskip: the report leaves out the answers of {row['id']}: {error}", file=sys.stderr)
        return []


def with_settings(rows: Sequence[Row]) -> list[Row]:
    """Copy rows for display (see `displayed`) and add the configuration keys in which they differ.

    The keys of a config group are compared only between rows with the same choice, e.g. `decoding=greedy`.

    >>> one, other = (dict(config=dict(decoding=dict(name="greedy", max_new_tokens=n))) for n in (4, 24))
    >>> [row["decoding.max_new_tokens"] for row in with_settings([one, other])], with_settings([one, one]) == [one, one]
    ([4, 24], True)
    """
    found = [displayed(row) for row in rows]
    for part, own_keys in _CONFIG_PARTS.items():
        choices: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for i, row in enumerate(rows):
            values = (row.get("config") or {}).get(part)
            if isinstance(values, dict) and any(row.get(key) is not None for key in _PART_NEEDS.get(part, ("config",))):
                choices[str(values.get("name"))][i] = all_printable(values)
        for members in choices.values():
            kinds = {repr(values): values for values in members.values()}
            keys = _varying(list(kinds.values()), own_keys) if len(kinds) > 1 else []
            for i, values in members.items() if keys else ():
                found[i].update({f"{part}.{key}": values[key] for key in keys})
    for key, default in _CONFIG_KEYS.items():
        known = {i: row["config"].get(key, default) for i, row in enumerate(rows) if row.get("config") and _uses(row, key)}
        for i, value in known.items() if len(set(map(str, known.values()))) > 1 else ():
            found[i][key] = value
    return found


def _uses(row: Row, key: str) -> bool:
    return key != "baseline_engine" or row.get("baseline_id") is not None


def displayed(row: Row) -> Row:
    """Copy a row with texts that a terminal, Markdown and CSV can show; only the path of its folder stays as it is."""
    return {**all_printable(row), **{key: row[key] for key in ("folder",) if key in row}}


def _varying(kinds: Sequence[dict[str, Any]], own_keys: set[str]) -> list[str]:
    """List the plain keys that all configurations have and in which they differ."""
    text = pd.DataFrame([{key: str(value) for key, value in one.items() if not isinstance(value, dict)} for one in kinds])
    return [key for key in text if key not in own_keys and text[key].notna().all() and text[key].nunique() > 1]


def knows(row: Row, key: str) -> bool:
    """Return True if the value of a setting is known. None is a value, but means unknown in an unfinished run's row.

    The engines of drafts and early exit belong to the method, so that they are compared with every engine.

    >>> knows({"dataset": None, "status": "done"}, "dataset"), knows({"dataset": None, "status": "failed"}, "dataset")
    (True, False)
    """
    if key == "engine" and row.get(key) in _METHOD_ENGINES:
        return False
    return key in row and (row[key] is not None or is_done(row))


def setting_keys(rows: Iterable[Row]) -> list[str]:
    """List the keys that `with_settings` added to these rows."""
    return list(dict.fromkeys(key for row in rows for key in row if "." in key))


def setting_title(key: str) -> str:
    """Return the title of a setting.

    >>> setting_title("decoding.max_new_tokens"), setting_title("batch_size"), setting_title("num_examples")
    ('max new tokens', 'batch size', 'examples')
    """
    return key.rpartition(".")[2].removeprefix("num_").replace("_", " ")


def done(rows: Iterable[Row]) -> list[Row]:
    """Select the rows of finished runs."""
    return [row for row in rows if is_done(row)]


def absent(row: Row) -> str:
    """Return the text of a cell without a value: N/A as in the paper's tables, failed, or a dash.

    >>> absent({"status": "n/a"}), absent({})
    ('N/A', '–')
    """
    return _STATUS_CELLS.get(row.get("status", ""), MISSING)


def reasons(rows: Sequence[Row]) -> list[str]:
    """List the reasons why points have no result, with strategies; reasons that differ only in `got NUMBER` are merged."""
    found: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    first: dict[str, str] = {}
    for row in rows:
        if not is_done(row):
            reason = str(row.get("reason") or "no reason given")
            reason = first.setdefault(re.sub(r"got \d+", "got", reason), reason)
            found[absent(row), reason][str(row.get("strategy"))] = None
    lines = [f"{word} ({', '.join(strategies)}): {reason}" for (word, reason), strategies in found.items()]
    return [*lines[:MAX_REASONS], *[f"and {len(lines) - MAX_REASONS} more reasons"] * (len(lines) > MAX_REASONS)]


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by model, pair, target speedup (layer ratio if a row has no target) and strategy."""

    def order(row: Row) -> tuple[str, str, float, str]:
        ratio = row.get("target_speedup") or row.get("layer_ratio") or 0.0
        return str(row.get("model")), str(row.get("pair")), ratio, row["strategy"]

    return sorted(rows, key=order)


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Group rows by their settings, in order of first appearance.

    A row that lacks a setting (a failed one) joins the first group whose other settings match.

    >>> [group.label for group in grouped([{"model": "m", "seed": 1}, {"model": "m", "seed": 2}])]
    ['m · seed 1', 'm · seed 2']
    """
    keys = list(dict.fromkeys((*ALWAYS_NAMED, *SETTINGS, *setting_keys(rows))))
    values = [[str(row[key]) if knows(row, key) else _UNKNOWN for key in keys] for row in rows]
    text = pd.DataFrame(values, columns=keys, dtype=object)
    varying = [key for key in keys[len(ALWAYS_NAMED) :] if text.loc[text[key] != _UNKNOWN, key].nunique() > 1]
    text = text[[*ALWAYS_NAMED, *varying]]
    text = text.assign(**{key: text[key].replace(_UNKNOWN, "None") for key in ALWAYS_NAMED})
    group_of = _assign(list(text.drop_duplicates().itertuples(index=False, name=None)))
    members: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row, setting in zip(rows, text.itertuples(index=False, name=None), strict=True):
        members[group_of[setting]].append(row)
    return [Group(_label(setting, varying), own) for setting, own in members.items()]


def _assign(settings: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Map every combination of settings to a group: a complete one to itself, an incomplete one to the first match."""
    complete = [values for values in settings if _UNKNOWN not in values]
    found = {values: values for values in complete}
    for values in settings:
        if values not in found:
            alike = (one for one in complete if all(own in (_UNKNOWN, other) for own, other in zip(values, one, strict=True)))
            found[values] = next(alike, tuple("None" if own == _UNKNOWN else own for own in values))
            if found[values] not in complete:
                complete.append(found[values])
    return found


def _label(values: Sequence[str], varying: Sequence[str]) -> str:
    named = [value for value in values[: len(ALWAYS_NAMED)] if value != "None"]
    others = zip(varying, values[len(ALWAYS_NAMED) :], strict=True)
    return " · ".join([*named, *(f"{setting_title(key)} {value}" for key, value in others if value != "None")])
