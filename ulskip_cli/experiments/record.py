"""`RunRecord` holds everything that results/ stores of one run, in typed sections, and reads and writes rows.

A row is one flat JSON object in `runs.jsonl`. The field names of the sections (`record_sections.py`) are its keys;
docs/results.md describes them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record_sections import (
    BenchmarkDetails,
    LmEvalScores,
    PairedTiming,
    Provenance,
    QualityScores,
    RunIdentity,
    ScheduleRecord,
    Throughput,
)
from ulskip_cli.experiments.row_values import accepts_none, checked, hints_of
from ulskip_cli.tasks.metrics import metric_keys

DONE, NOT_APPLICABLE, FAILED = "done", "n/a", "failed"
STATUSES = (DONE, NOT_APPLICABLE, FAILED)

Row = dict[str, Any]  # a record as a JSON object


def is_done(row: Mapping[str, Any]) -> bool:
    """Return True for the row of a finished run."""
    return bool(row["status"] == DONE)


@dataclass(frozen=True)
class RunRecord:
    """The record of one run. A failed or inapplicable run has a reason, and its sections of measurements are None."""

    identity: RunIdentity
    status: str = DONE
    reason: str | None = None
    log: str | None = None
    schedule: ScheduleRecord | None = None
    quality: QualityScores | None = None
    throughput: Throughput | None = None
    timing: PairedTiming | None = None
    benchmark: BenchmarkDetails | None = None
    lm_eval: LmEvalScores | None = None
    provenance: Provenance | None = None
    warnings: tuple[str, ...] = ()
    wall_seconds: float | None = None
    other: Mapping[str, Any] = field(default_factory=dict)  # unknown keys of a row, written back unchanged

    @property
    def id(self) -> str:
        """The identifier of the point."""
        return self.identity.id

    @property
    def is_done(self) -> bool:
        """True for a finished run."""
        return self.status == DONE

    def to_row(self) -> Row:
        """Return a flat JSON object. A failed run omits an unknown `dataset` or `chat`, so that its row fits any group."""
        row: Row = {key: getattr(self, key) for key in _OWN_KEYS if getattr(self, key) is not None}
        for name in _SECTIONS:
            section = getattr(self, name)
            if section is not None:
                row |= {one.name: getattr(section, one.name) for one in fields(section)}
        row |= row.pop("scores", {})
        for key in () if self.is_done else ("dataset", "chat"):
            if row[key] is None:
                del row[key]
        return {**row, "warnings": list(self.warnings), **self.other}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Read a row; raise UsageError with the name of a missing or mistyped key."""
        rest = dict(row)
        for key in ("id", "status"):
            if not rest.get(key):
                raise UsageError(f"expected a value for the key {key} of a row, got none")
        sections = {name: _read_section(kind, rest) for name, kind in _SECTIONS.items()}
        own = {key: checked(key, rest.pop(key), kind) for key, kind in _OWN_KEYS.items() if key in rest}
        if own["status"] not in STATUSES:
            raise UsageError(f"expected the key status of a row to be one of {', '.join(STATUSES)}, got {own['status']!r}")
        own["warnings"] = tuple(checked("warnings", rest.pop("warnings", []), list[str]))
        _check_together(row)
        return cls(**{**sections, **own, "other": rest})


_OWN_KEYS: dict[str, Any] = {
    "status": str,
    "reason": str | None,
    "log": str | None,
    "wall_seconds": float | None,
}
_SECTIONS: dict[str, type] = {
    "identity": RunIdentity,
    "schedule": ScheduleRecord,
    "provenance": Provenance,
    "quality": QualityScores,
    "throughput": Throughput,
    "timing": PairedTiming,
    "benchmark": BenchmarkDetails,
    "lm_eval": LmEvalScores,
}
_HINTS = {key: hint for kind in _SECTIONS.values() for key, hint in hints_of(kind).items()}
_NEEDS = {  # keys without which the value of another key means nothing
    "kept_layers": ("num_layers", "layer_ratio"),
    "measured_speedup": ("measured_speedup_low", "measured_speedup_high"),
    "machine_limits": (
        *("model", "dtype", "device", "engine", "environment", "prompt_layers", "timed_prompt_tokens", "timed_new_tokens"),
        *("compiled", "kept_layers", "predicted_speedup", "decode_tokens_per_second", "total_tokens_per_second"),
        *("end_to_end_speedup", "full"),
    ),
}


def _read_section(kind: type, rest: dict[str, Any]) -> Any:
    """Return one section and remove its keys from `rest`; return None if the row contains none of the keys."""
    hints = hints_of(kind)
    found = {key: rest.pop(key) for key in hints if key in rest}
    if kind is QualityScores:
        scores = {key: checked(key, rest.pop(key), float | None) for key in metric_keys() if key in rest}
        found |= {"scores": {key: value for key, value in scores.items() if value is not None}} if scores else {}
    if not found:
        return None
    given = {key: value for key, value in found.items() if value is not None or accepts_none(hints[key])}
    return kind(**{key: checked(key, value, hints[key]) for key, value in given.items()})


def _check_together(row: Mapping[str, Any]) -> None:
    """Raise UsageError for values of a row that contradict one another, or that need another value."""
    for key, needed in _NEEDS.items():
        missing = [one for one in needed if row.get(one) in (None, {})] if row.get(key) is not None else []
        if missing:
            raise UsageError(f"expected a value for the key {missing[0]} of a row with {key}, got none")
    ends = {key: (row.get(f"{key}_low"), row.get(f"{key}_high")) for key in ("measured_speedup", "end_to_end_speedup")}
    ends |= {f"vs_baseline.{key}": (one["delta_low"], one["delta_high"]) for key, one in (row.get("vs_baseline") or {}).items()}
    for key, (low, high) in ends.items():
        if low is not None and high is not None and low > high:
            raise UsageError(f"expected the interval of the key {key} of a row to be ascending, got {low:g} to {high:g}")
    schedules = [row, *(row.get("later_stages") or ())]
    highest = max((layer for one in schedules for layer in one.get("kept_layers") or ()), default=-1)
    if highest >= (row.get("num_layers") or math.inf):
        raise UsageError(f"expected the key kept_layers of a row to be below num_layers={row['num_layers']}, got {highest}")
    for key, value in (row.get("full") or {}).items():
        if key in _HINTS:
            checked(f"full.{key}", value, _HINTS[key])
