"""`RunRecord`: everything that results/ keeps of one run, in typed sections. The only file that spells the keys of a row.

A row is one flat JSON object in `runs.jsonl`. The field names of the sections below are its keys; docs/results.md describes
them. Rows of earlier versions are read with the keys that they had then (`RENAMED_KEYS`).
"""

import functools
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from ulskip_cli.core.config import identity
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.strategies.plan import target_speedup
from ulskip_cli.tasks.metrics import metric_keys

ROW_VERSION = 2
"""Changes when keys change their name or meaning, or when the same configuration gives another result."""

DONE, NOT_APPLICABLE, FAILED = "done", "n/a", "failed"
STATUSES = (DONE, NOT_APPLICABLE, FAILED)

Row = dict[str, Any]
"""A record as a JSON object."""


def upgrade_row(row: Mapping[str, Any]) -> Row:
    """Return a row of any earlier version with the key names of this version, in the full model's side of a benchmark too."""
    upgraded = {RENAMED_KEYS.get(key, key): value for key, value in row.items()}
    if isinstance(upgraded.get("full"), dict):
        upgraded["full"] = {RENAMED_KEYS.get(key, key): value for key, value in upgraded["full"].items()}
    return upgraded


def is_done(row: Mapping[str, Any]) -> bool:
    """True for the row of a finished run; the oldest rows have no status and are finished."""
    return bool(row.get("status", DONE) == DONE)


RENAMED_KEYS = {
    "product": "linear_backend",
    "account": "step_time_breakdown",
    "against_full": "vs_baseline",
    "point_seconds": "wall_seconds",
    "sources_cut": "num_truncated_sources",
    "head_share": "exit_check_fraction",
    "ceilings": "machine_limits",
}
"""Keys of row version 1 and their names since version 2."""


@dataclass(frozen=True)
class StrategySpec:
    """A strategy as a user chose it: its name and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunIdentity:
    """What was asked for."""

    id: str
    experiment: str | None = None
    identity: str | None = None
    baseline_id: str | None = None
    model: str | None = None
    task: str | None = None
    dataset: str | None = None
    pair: str | None = None
    strategy: str | None = None
    strategy_options: dict[str, Any] = field(default_factory=dict)
    chat: bool | None = None
    decoding: str | None = None
    draft_tokens: int | str | None = None
    batch_size: int | None = None
    ratio_basis: str | None = None
    prompt_layers: str | None = None
    target_speedup: float | None = None
    seed: int | None = None

    @classmethod
    def of(cls, config: Config, run_id: str, *, baseline_id: str | None = None, dataset: str | None = None) -> Self:
        """The identity of a point, the same for a finished and a failed run."""
        target = target_speedup(config)
        return cls(
            id=run_id,
            experiment=config.name,
            identity=identity(config),
            baseline_id=baseline_id,
            model=config.model.path if config.model.source in ("hf", "random") else config.model.name,
            task=config.task["name"],
            dataset=dataset,
            pair=config.task.get("pair"),
            strategy=config.strategy["name"],
            strategy_options={k: v for k, v in config.strategy.items() if k not in ("_target_", "name", "description")},
            decoding=config.decoding.name,
            draft_tokens=config.decoding.draft_tokens,
            batch_size=config.batch_size,
            ratio_basis=config.ratio_basis,
            prompt_layers="all" if target == 1 else config.prompt_layers,
            target_speedup=target,
            seed=config.seed,
        )


@dataclass(frozen=True)
class ScheduleRecord:
    """Which layers ran, and the speedup that the cost model predicts for them."""

    num_layers: int | None = None
    kept_layers: list[int] | None = None
    later_stages: list[dict[str, Any]] = field(default_factory=list)
    target_kept_layers: float | None = None
    mean_kept_layers: float | None = None
    evaluated_mean_kept_layers: float | None = None
    layer_ratio: float | None = None
    predicted_speedup: float | None = None
    latency_fit: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None


@dataclass(frozen=True)
class QualityScores:
    """How good the answers are. `scores` holds one value per metric key (tasks.metrics)."""

    scores: dict[str, float] = field(default_factory=dict)
    decode_loss: float | None = None
    decode_loss_mean_kept_layers: float | None = None
    signatures: dict[str, str] = field(default_factory=dict)
    vs_baseline: dict[str, Any] = field(default_factory=dict)
    degenerate: dict[str, int] = field(default_factory=dict)
    length_ratio: float | None = None
    num_truncated_sources: int | None = None
    evaluated_batch_size: int | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class Throughput:
    """Both tokens/s conventions, and the counts and seconds that they divide."""

    decode_tokens_per_second: float | None = None
    total_tokens_per_second: float | None = None
    throughput_from: str | None = None
    compile_seconds: float | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    decode_seconds: float | None = None
    total_seconds: float | None = None
    acceptance_rate: float | None = None
    mean_accepted_length: float | None = None
    exit_depths: dict[str, int] | None = None
    exit_check_fraction: float | None = None
    missing_kv: str | None = None


@dataclass(frozen=True)
class PairedTiming:
    """The full model and the strategy timed in turns: ratios with intervals, raw samples, phases, cache bytes."""

    measured_speedup: float | None = None
    measured_speedup_low: float | None = None
    measured_speedup_high: float | None = None
    speedup_interval_coverage: float | None = None
    end_to_end_speedup: float | None = None
    end_to_end_speedup_low: float | None = None
    end_to_end_speedup_high: float | None = None
    pairs: dict[str, Any] | None = None
    timed_batch_size: int | None = None
    prefill_seconds: float | None = None
    time_to_first_token_seconds: float | None = None
    time_per_output_token_seconds: float | None = None
    prompt_kv_bytes: int | None = None
    kept_kv_bytes: int | None = None


@dataclass(frozen=True)
class BenchmarkDetails:
    """Keys that only `ulskip bench` measures."""

    timed_prompt_tokens: int | None = None
    timed_new_tokens: int | None = None
    compiled: bool | None = None
    machine_limits: dict[str, Any] | None = None
    step_bytes: int | None = None
    step_flops: int | None = None
    bandwidth_share: float | None = None
    flop_share: float | None = None
    step_time_breakdown: dict[str, Any] | None = None
    full: dict[str, Any] | None = None


@dataclass(frozen=True)
class LmEvalScores:
    """Scores of one task of lm-evaluation-harness, in its own units."""

    lm_eval: dict[str, float] | None = None
    lm_eval_version: str | None = None
    scored_prompt_layers: str | None = None
    num_fewshot: int | None = None
    task_version: Any = None
    lm_eval_options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Provenance:
    """What the result depends on besides its configuration."""

    finished_at: str | None = None
    engine: str | None = None
    engine_reason: str | None = None
    linear_backend: str | None = None
    linear_backend_reason: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    training: str | None = None
    trained_for: dict[str, Any] | None = None
    trained_for_these_layers: bool | None = None
    num_examples: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """One run: what was asked, what ran, what was measured.

    A run that failed or does not apply has a reason and no measurements: its other sections are None.
    """

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
    row_version: int = ROW_VERSION
    other: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a row that this version does not know; they are written back unchanged."""

    @property
    def id(self) -> str:
        """The identifier of the point."""
        return self.identity.id

    @property
    def is_done(self) -> bool:
        """True for a finished run."""
        return self.status == DONE

    def to_row(self) -> Row:
        """The record as one flat JSON object.

        Without a result, the keys that only encoded data tell are left out: reports group such a row with any that has them.
        """
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
        """The record of a row of this or any earlier version.

        Raises:
            UsageError: a key is missing or has a value of another type; the message names the key.
        """
        rest = upgrade_row(row)
        if not rest.get("id"):
            raise UsageError("expected the key id in a row, got none")
        sections = {name: _read_section(kind, rest) for name, kind in _SECTIONS.items()}
        own = {key: _checked(key, rest.pop(key), kind) for key, kind in _OWN_KEYS.items() if key in rest}
        if own.get("status", DONE) not in STATUSES:
            raise UsageError(f"row key status: expected one of {', '.join(STATUSES)}, got {own['status']!r}")
        own["warnings"] = tuple(_checked("warnings", rest.pop("warnings", []), list))
        return cls(**{**sections, **own, "other": rest})


_OWN_KEYS: dict[str, Any] = {
    "row_version": int,
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


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The annotation of each field of a section."""
    return typing.get_type_hints(kind)


@functools.cache
def _runtime_types(hint: Any) -> tuple[type, ...]:
    if hint is Any:
        return (object,)
    if isinstance(hint, types.UnionType):
        return tuple(one for part in typing.get_args(hint) for one in _runtime_types(part))
    plain = typing.get_origin(hint) or hint
    return (float, int) if plain is float else (plain,)


def _checked(key: str, value: Any, hint: Any) -> Any:
    accepted = _runtime_types(hint)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted and object not in accepted):
        names = " or ".join(one.__name__ for one in accepted)
        raise UsageError(f"row key {key}: expected {names}, got {json.dumps(value, default=str)[:60]}")
    return value


def _read_section(kind: type, rest: dict[str, Any]) -> Any:
    """Take the keys of one section out of `rest`; None if the row has none of them."""
    hints = _hints(kind)
    found = {key: rest.pop(key) for key in hints if key in rest}
    if kind is QualityScores:
        scores = {key: _checked(key, rest.pop(key), float | None) for key in metric_keys() if key in rest}
        found |= {"scores": {key: value for key, value in scores.items() if value is not None}} if scores else {}
    if not found:
        return None
    optional = {key for key, hint in hints.items() if type(None) in _runtime_types(hint)}
    return kind(
        **{key: _checked(key, value, hints[key]) for key, value in found.items() if value is not None or key in optional}
    )
