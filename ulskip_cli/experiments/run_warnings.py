"""Warnings of a finished run: one line for each difference between the requested settings and the actual run."""

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.cpu_load import is_crowded
from ulskip_cli.core.strategy import LAYER, UNIT_NAMES
from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.experiments.record import RunRecord
from ulskip_cli.experiments.record_sections import MIN_COVERAGE, QualityScores
from ulskip_cli.strategies.plan import Plan

DEPTH_TOLERANCE = 0.05  # relative difference between the answers' mean depth and the target that needs no warning

PREDICTION_FACTOR = 1.6  # between the measured and the predicted speedup; a larger one needs a warning


def run_warnings(config: Config, plan: Plan, record: RunRecord) -> tuple[str, ...]:
    """Return the warnings of the plan and of the finished run."""
    return (
        *plan.warnings,
        *_untrained(plan, record),
        *adjustments(config, record),
        *_depth_misses(config, record),
        *_misprediction(record),
    )


def adjustments(config: Config, record: RunRecord) -> list[str]:
    """Return the warnings about truncated texts, batch size, a busy machine, a missing kernel, and slow quantized weights."""
    lines = _disturbance(record)
    quality, timing, strategy = record.quality, record.timing, record.identity.strategy
    if quality and record.provenance:
        lines += _truncations(quality, record.provenance.num_examples)
    used = {
        "evaluation": quality.evaluated_batch_size if quality else None,
        "timing": timing.timed_batch_size if timing else None,
    }
    for what, size in used.items():
        if size is not None and size < config.batch_size:
            lines.append(
                f"{strategy}: batch_size={config.batch_size} did not fit into memory, so the {what} used batches of {size}; "
                f"speed depends on the batch size, so set batch_size={size} to compare runs"
            )
    ran, failure = record.provenance, cpu_kernels.build_failure()
    if ran and failure and failure == ran.linear_backend_reason:
        lines.append(
            f"the CPU kernel for decoding was not built ({failure}), so decoding used {ran.linear_backend} and may be slower; "
            "check the C++ compiler, or set ULSKIP_KERNEL=off"
        )
    if ran and config.model.quantization and (ran.device or "cpu").startswith("cpu"):
        lines.append(
            f"model.quantization={config.model.quantization} saves memory on a CPU, but decodes more slowly than bfloat16; for "
            "speed, use engine=openvino engine.weights=int8 or engine=llama_cpp engine.weights=q8_0"
        )
    return lines


def _truncations(quality: QualityScores, total: int | None) -> list[str]:
    lines = []
    if quality.num_truncated_sources:
        lines.append(
            f"{quality.num_truncated_sources} of {total} sources were truncated to fit into the model's context, so quality "
            "may suffer; lower decoding.max_new_tokens or use shorter sources"
        )
    if quality.num_truncated_references:
        lines.append(
            f"{quality.num_truncated_references} of {total} references were truncated at the end of the model's context, so "
            "decode_loss does not count their ends; use shorter sources or references"
        )
    return lines


def _disturbance(record: RunRecord) -> list[str]:
    timing, ran = record.timing, record.provenance
    if not timing or not ran or timing.other_cpus is None:
        return []
    on_cpu = (ran.device or "cpu").startswith("cpu")  # beside another device, one thread starts the steps
    if not is_crowded(timing.other_cpus, ran.environment.get("threads", 1) if on_cpu else 1):
        return _slow_waiting(record) if on_cpu and ran.environment.get("wait_policy") == "PASSIVE" else []
    return [
        f"{record.identity.strategy}: other processes used {timing.other_cpus:.1f} CPUs during the timed pairs, so the times "
        "and speedups may be wrong; repeat the run when they have ended, or set OMP_NUM_THREADS to the number of free CPUs"
    ]


def _slow_waiting(record: RunRecord) -> list[str]:
    return [
        f"{record.identity.strategy}: threads slept while they waited (OMP_WAIT_POLICY=PASSIVE): the machine was busy when "
        "this program started; the timed pairs had it alone and would have been faster, so start the run again"
    ]


def _untrained(plan: Plan, record: RunRecord) -> list[str]:
    if plan.keeps_all or record.provenance is None or record.provenance.trained_for_these_layers is not False:
        return []
    if record.schedule and (record.schedule.skip_adapter or record.schedule.patch):  # made for these layers
        return []
    count = plan.target_kept if plan.exits else plan.num_kept
    train = "train them for these layers with `ulskip train`, or " if plan.unit == LAYER else ""
    return [
        f"{plan.strategy} with {count} of {plan.num_layers} {UNIT_NAMES[plan.unit]}: the weights were trained for other "
        f"layers, so quality may suffer; {train}use the strategy and ratio of their training"
    ]


def _depth_misses(config: Config, record: RunRecord) -> list[str]:
    schedule = record.schedule
    if schedule is None or config.ratio_basis == "latency":
        return []
    target, mean = schedule.target_kept_layers, schedule.evaluated_mean_kept_layers
    if not target or not mean or abs(mean - target) <= DEPTH_TOLERANCE * target:
        return []
    exits = record.throughput is not None and record.throughput.exit_depths
    num_calibrated = (schedule.calibration or {}).get("examples", config.batch_size)
    if not exits:
        advice = (
            "the answers differ in length from those of the calibration; set strategy.horizon or raise calibration.examples"
        )
    elif num_calibrated < config.batch_size:
        advice = (
            f"{num_calibrated} calibration examples are fewer than batch_size={config.batch_size}; raise calibration.examples"
        )
    else:
        advice = "change strategy.threshold or raise calibration.examples"
    name = record.identity.strategy
    return [
        f"{name}: expected a mean depth of {target} layers, got {mean:.2f}, so the speedup differs from the target; {advice}"
    ]


def _misprediction(record: RunRecord) -> list[str]:
    predicted = record.schedule.predicted_speedup if record.schedule else None
    timing, measured = record.timing, record.timing.measured_speedup if record.timing else None
    if not predicted or not timing or not measured or record.identity.draft_tokens:  # that of drafts is measured
        return []
    if 1 / PREDICTION_FACTOR <= measured / predicted <= PREDICTION_FACTOR:
        return []
    low, high, coverage = timing.measured_speedup_low, timing.measured_speedup_high, timing.speedup_interval_coverage
    if coverage is not None and coverage < MIN_COVERAGE:  # too few pairs to contradict anything, and so are disturbed ones
        return []
    if low is not None and high is not None and low <= predicted <= high:
        return []
    return [
        f"{record.identity.strategy}: the cost model predicted a speedup of {predicted:.2f}, but {measured:.2f} was measured; "
        "it counts only the bytes of weights that a step reads, so rely on the measured speedup"
    ]
