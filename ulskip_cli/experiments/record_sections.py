"""The typed sections of a `RunRecord`. Their field names are the keys of a row; docs/results.md describes them."""

import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.row_values import (
    AdapterValues,
    AnyFloat,
    ComparedValues,
    ConfigValues,
    Count,
    EnvironmentValues,
    FullValues,
    Layers,
    LimitValues,
    NumberedKeys,
    NumLayers,
    OrEmpty,
    PairValues,
    PatchValues,
    Positive,
    Rate,
    Share,
    Speedup,
    StageValues,
)

MIN_COVERAGE = 0.93  # of the interval of a speedup that a verdict relies on; five pairs have 0.9375
_FILE_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .+=-]*")


@dataclass(frozen=True)
class RunIdentity:
    """The settings that identify a run. `id` and `baseline_id` name files, so they contain no path."""

    id: str
    experiment: str | None = None
    identity: str | None = None
    baseline_id: str | None = None
    model: str | None = None
    baseline_model: str | None = None
    task: str | None = None
    dataset: str | None = None
    pair: str | None = None
    strategy: str | None = None
    strategy_options: dict[str, Any] = field(default_factory=dict)  # those that differ from the defaults
    correction: str | None = None
    chat: bool | None = None
    decoding: str | None = None
    draft_tokens: int | str | None = None
    batch_size: Count | None = None
    ratio_basis: str | None = None
    prompt_layers: str | None = None
    target_speedup: Speedup | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for key in ("id", "baseline_id"):
            name = getattr(self, key)
            if name is not None and not _FILE_STEM.fullmatch(name):
                got = json.dumps(name)[:60]
                raise UsageError(f"expected the key {key} of a row to contain letters, digits and -_.+= only, got {got}")

    @classmethod
    def of(cls, config: Config, run_id: str, *, baseline_id: str | None = None, dataset: str | None = None) -> Self:
        """Make the identity of a point, equal for a finished and a failed run."""
        strategy = config.strategy
        target = config.ratio if strategy.follows_ratio else 1.0 if strategy.keeps_all else None
        return cls(
            id=run_id,
            experiment=config.name,
            identity=config.identity,
            baseline_id=baseline_id,
            model=config.model.label,
            baseline_model=config.baseline_model.label if config.baseline_model else None,
            task=config.task.name,
            dataset=dataset,
            pair=getattr(config.task, "pair", None),
            strategy=strategy.name,
            strategy_options=strategy.options(),
            correction=config.correction.label or None,
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
    """The layers that ran, and the speedup that the cost model predicts for them."""

    num_layers: NumLayers | None = None
    kept_layers: Layers | None = None
    unit: str | None = None  # None: whole layers
    later_stages: list[Annotated[dict[str, Any], StageValues]] = field(default_factory=list)
    target_kept_layers: Positive | None = None
    mean_kept_layers: Positive | None = None
    evaluated_mean_kept_layers: Positive | None = None
    layer_ratio: Positive | None = None
    predicted_speedup: Speedup | None = None
    draft_cost: Positive | None = None
    latency_fit: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    patch: Annotated[dict[str, Any], PatchValues] | None = None
    skip_adapter: Annotated[dict[str, Any], AdapterValues] | None = None


@dataclass(frozen=True)
class QualityScores:
    """The quality of the answers. `scores` holds one value per metric key (tasks.metrics)."""

    scores: dict[str, float] = field(default_factory=dict)
    decode_loss: AnyFloat | None = None
    decode_loss_mean_kept_layers: float | None = None
    signatures: dict[str, str] = field(default_factory=dict)
    vs_baseline: dict[str, Annotated[dict[str, Any], ComparedValues]] = field(default_factory=dict)
    degenerate: dict[str, Count] = field(default_factory=dict)
    length_ratio: float | None = None
    num_truncated_sources: Count | None = None
    num_truncated_references: Count | None = None
    evaluated_batch_size: Count | None = None
    peak_memory_bytes: Count | None = None


@dataclass(frozen=True)
class Throughput:
    """Tokens/s in both conventions, and the counts and seconds from which they are computed."""

    decode_tokens_per_second: Rate | None = None
    total_tokens_per_second: Rate | None = None
    throughput_from: str | None = None
    compile_seconds: float | None = None
    prompt_tokens: Count | None = None
    generated_tokens: Count | None = None
    decode_seconds: float | None = None
    total_seconds: float | None = None
    acceptance_rate: Share | None = None
    mean_accepted_length: float | None = None
    exit_depths: Annotated[dict[str, Count], NumberedKeys()] | None = None
    exit_check_fraction: float | None = None
    missing_kv: str | None = None


@dataclass(frozen=True)
class PairedTiming:
    """Timed pairs of the full model and the strategy: speedups with intervals, raw seconds, KV cache bytes."""

    measured_speedup: Speedup | None = None
    measured_speedup_low: Speedup | None = None
    measured_speedup_high: Speedup | None = None
    speedup_interval_coverage: Share | None = None
    end_to_end_speedup: Speedup | None = None
    end_to_end_speedup_low: Speedup | None = None
    end_to_end_speedup_high: Speedup | None = None
    pairs: Annotated[dict[str, Any], PairValues] | None = None
    timed_batch_size: Count | None = None
    other_cpus: Rate | None = None
    prefill_seconds: float | None = None
    time_to_first_token_seconds: float | None = None
    time_per_output_token_seconds: Positive | None = None
    prompt_kv_bytes: Count | None = None
    kept_kv_bytes: Count | None = None


@dataclass(frozen=True)
class BenchmarkDetails:
    """Values that only `ulskip bench` measures."""

    timed_prompt_tokens: Count | None = None
    timed_new_tokens: Count | None = None
    compiled: bool | None = None
    compiled_layers: bool | None = None
    machine_limits: Annotated[dict[str, Any], LimitValues] | None = None
    step_bytes: Count | None = None
    bandwidth_share: float | None = None
    full: Annotated[dict[str, Any], FullValues] | None = None


@dataclass(frozen=True)
class LmEvalScores:
    """Scores of one task of lm-evaluation-harness, in the harness's units."""

    lm_eval: dict[str, AnyFloat] | None = None
    lm_eval_version: str | None = None
    scored_prompt_layers: str | None = None
    num_fewshot: int | None = None
    task_version: Any = None
    lm_eval_options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Provenance:
    """Everything that a result depends on besides its settings: engine, device, weights, environment."""

    finished_at: str | None = None
    engine: str | None = None
    engine_reason: str | None = None
    engine_weights: str | None = None  # format of the weights of engines on other libraries
    engine_build: dict[str, Any] | None = None  # of these engines: package, version, instruction sets, threads
    linear_backend: str | None = None
    linear_backend_reason: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    training: str | None = None
    trained_for: dict[str, Any] | None = None
    trained_for_these_layers: bool | None = None
    num_examples: Count | None = None
    environment: Annotated[dict[str, Any], OrEmpty(EnvironmentValues)] = field(default_factory=dict)
    config: Annotated[dict[str, Any], ConfigValues] = field(default_factory=dict)
