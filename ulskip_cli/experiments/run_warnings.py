"""Warnings of a finished run: one line for each difference between the requested settings and the
actual run.
"""

from ulskip_cli.core.config_schema import COMPILED, Config
from ulskip_cli.core.cpu_load import is_crowded
from ulskip_cli.core.strategy import LAYER, UNIT_NAMES
from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.experiments.record import Record
from ulskip_cli.strategies.plan import Plan

DEPTH_TOLERANCE = (
    0.05  # relative difference between the answers' mean depth and the target that needs no warning
)

PREDICTION_FACTOR = (
    1.6  # between the measured and the predicted speedup; a larger one needs a warning
)


def run_warnings(config: Config, plan: Plan, record: Record) -> tuple[str, ...]:
    """Return the warnings of the plan and of the finished run."""
    if record.task is None:  # random prompts say nothing about quality
        return (*plan.warnings, *adjustments(config, record), *_uncompiled(config, record))
    return (
        *plan.warnings,
        *_untrained(plan, record),
        *adjustments(config, record),
        *_depth_misses(config, record),
        *_misprediction(record),
    )


def adjustments(config: Config, record: Record) -> list[str]:
    """Return the warnings about truncated texts, batch size, a busy machine, a missing kernel, and
    slow quantized weights.
    """
    lines = _disturbance(record)
    strategy = record.strategy
    if config.correction.label == "adapter" and config.strategy.name == "full":
        lines.append(
            f"correction=adapter has no effect with strategy={strategy}, which skips no layers"
        )
    lines += _truncations(record)
    used = {"evaluation": record.evaluated_batch_size, "timing": record.timed_batch_size}
    for what, size in used.items():
        if size is not None and size < config.batch_size:
            lines.append(
                f"{strategy}: batch_size={config.batch_size} did not fit into memory, so the {what}"
                f" used batches of {size}; speed depends on the batch size, so set"
                f" batch_size={size} to compare runs"
            )
    failure = cpu_kernels.build_failure()
    if failure and failure == record.linear_backend_reason:
        lines.append(
            f"the CPU kernel for decoding was not built ({failure}), so decoding used"
            f" {record.linear_backend} and may be slower; check the C++ compiler, or set"
            " ULSKIP_KERNEL=off"
        )
    if config.model.quantization and (record.device or "cpu").startswith("cpu"):
        lines.append(
            f"model.quantization={config.model.quantization} saves memory on a CPU, but decodes"
            " more slowly than bfloat16; for speed, use engine=openvino engine.weights=int8 or"
            " engine=llama_cpp engine.weights=q8_0"
        )
    return lines


def _truncations(record: Record) -> list[str]:
    lines, total = [], record.num_examples
    if record.num_truncated_sources:
        lines.append(
            f"{record.num_truncated_sources} of {total} sources were truncated to fit into the"
            " model's context, so quality may suffer; lower decoding.max_new_tokens or use shorter"
            " sources"
        )
    if record.num_truncated_references:
        lines.append(
            f"{record.num_truncated_references} of {total} references were truncated at the end of"
            " the model's context, so decode_loss does not count their ends; use shorter sources"
            " or references"
        )
    return lines


def _disturbance(record: Record) -> list[str]:
    machine = record.environment
    if machine is None or record.other_cpus is None:
        return []
    on_cpu = (record.device or "cpu").startswith(
        "cpu"
    )  # beside another device, one thread starts the steps
    if not is_crowded(record.other_cpus, machine.threads if on_cpu else 1):
        return _slow_waiting(record) if on_cpu and machine.wait_policy == "PASSIVE" else []
    return [
        f"{record.strategy}: other processes used {record.other_cpus:.1f} CPUs during the timed"
        " pairs, so the times and speedups may be wrong; repeat the run when they have ended, or"
        " set OMP_NUM_THREADS to the number of free CPUs"
    ]


def _slow_waiting(record: Record) -> list[str]:
    return [
        f"{record.strategy}: threads slept while they waited (OMP_WAIT_POLICY=PASSIVE): the machine"
        " was busy when this program started; the timed pairs had it alone and would have been"
        " faster, so start the run again"
    ]


def _untrained(plan: Plan, record: Record) -> list[str]:
    if plan.keeps_all or record.trained_for_these_layers is not False:
        return []
    if record.correction:  # made for these layers
        return []
    count = plan.target_kept if plan.exits else plan.num_kept
    train = "train them for these layers with `ulskip train`, or " if plan.unit == LAYER else ""
    return [
        f"{plan.strategy} with {count} of {plan.num_layers} {UNIT_NAMES[plan.unit]}: the weights"
        f" were trained for other layers, so quality may suffer; {train}use the strategy and ratio"
        " of their training"
    ]


def _uncompiled(config: Config, record: Record) -> list[str]:
    how = config.decoding.compile
    if how not in COMPILED or record.compiled:
        return []
    return [
        f"decoding.compile={how} had no effect: the {record.engine} engine does not compile this"
        " model's steps, so they were timed uncompiled; use engine=torch if it supports the model"
    ]


def _depth_misses(config: Config, record: Record) -> list[str]:
    if config.ratio_basis == "latency":
        return []
    target, mean = record.target_kept_layers, record.evaluated_mean_kept_layers
    if not target or not mean or abs(mean - target) <= DEPTH_TOLERANCE * target:
        return []
    num_calibrated = (record.calibration or {}).get("examples", config.batch_size)
    if not record.exit_depths:
        advice = (
            "the answers differ in length from those of the calibration; set strategy.horizon or"
            " raise calibration.examples"
        )
    elif num_calibrated < config.batch_size:
        advice = (
            f"{num_calibrated} calibration examples are fewer than batch_size={config.batch_size};"
            " raise calibration.examples"
        )
    else:
        advice = "change strategy.threshold or raise calibration.examples"
    return [
        f"{record.strategy}: expected a mean depth of {target} layers, got {mean:.2f}, so the"
        f" speedup differs from the target; {advice}"
    ]


def _misprediction(record: Record) -> list[str]:
    predicted, speedup = record.predicted_speedup, record.speedup
    if not predicted or not speedup or record.draft_tokens:  # that of drafts is measured
        return []
    if 1 / PREDICTION_FACTOR <= speedup.value / predicted <= PREDICTION_FACTOR:
        return []
    if (
        speedup.low is None or speedup.high is None
    ):  # too few pairs to contradict anything, and so are disturbed ones
        return []
    if speedup.low <= predicted <= speedup.high:
        return []
    return [
        f"{record.strategy}: the cost model predicted a speedup of {predicted:.2f}, but"
        f" {speedup.value:.2f} was measured; it counts only the bytes of weights that a step reads,"
        " so rely on the measured speedup"
    ]
