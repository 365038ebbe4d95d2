"""Warnings of a finished run: one line for each difference between the requested settings and the
actual run.
"""

from collections.abc import Iterator

from ulskip_cli.core.config_schema import COMPILED, Config
from ulskip_cli.core.cpu_load import is_crowded
from ulskip_cli.core.strategy import LAYER, UNIT_NAMES
from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.experiments.record import Record
from ulskip_cli.strategies.plan import Plan

# relative difference between mean depth and target that is allowed without a warning
DEPTH_TOLERANCE = 0.05
# factor between measured and predicted speedup that is allowed without a warning
PREDICTION_FACTOR = 1.6


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


def adjustments(config: Config, record: Record) -> Iterator[str]:
    """Yield the warnings about a busy machine, truncated texts, batch size, a missing kernel, and
    slow quantized weights.
    """
    # beside another device, one thread starts the steps
    is_on_cpu = (record.device or "cpu").startswith("cpu")
    machine = record.environment
    if machine and is_crowded(record.other_cpus, machine.threads if is_on_cpu else 1):
        yield (
            f"{record.strategy}: other processes used {record.other_cpus:.1f} CPUs during the timed"
            " pairs, so the times and speedups may be wrong; repeat the run when they have ended,"
            " or set OMP_NUM_THREADS to the number of free CPUs"
        )
    elif (
        machine and record.other_cpus is not None and is_on_cpu and machine.wait_policy == "PASSIVE"
    ):
        yield (
            f"{record.strategy}: threads slept while they waited (OMP_WAIT_POLICY=PASSIVE): the"
            " machine was busy when this program started; the timed pairs ran alone and would"
            " have been faster, so start the run again"
        )
    if config.correction.label == "adapter" and record.keeps_all:
        yield "correction=adapter has no effect with strategy=full, which skips no layers"
    if record.num_truncated_sources:
        yield (
            f"{record.num_truncated_sources} of {record.num_examples} sources were truncated to fit"
            " into the model's context, so quality may suffer; lower decoding.max_new_tokens or use"
            " shorter sources"
        )
    if record.num_truncated_references:
        yield (
            f"{record.num_truncated_references} of {record.num_examples} references were truncated"
            " at the end of the model's context, so decode_loss does not count their ends; use"
            " shorter sources or references"
        )
    used = {"evaluation": record.evaluated_batch_size, "timing": record.timed_batch_size}
    for what, size in used.items():
        if size is not None and size < config.batch_size:
            yield (
                f"{record.strategy}: batch_size={config.batch_size} did not fit into memory, so the"
                f" {what} used batches of {size}; speed depends on the batch size, so set"
                f" batch_size={size} to compare runs"
            )
    failure = cpu_kernels.build_failure()
    if failure and failure == record.linear_backend_reason:
        yield (
            f"the CPU kernel for decoding was not built ({failure}), so decoding used"
            f" {record.linear_backend} and may be slower; check the C++ compiler, or set"
            " ULSKIP_KERNEL=off"
        )
    if config.model.quantization and is_on_cpu:
        yield (
            f"model.quantization={config.model.quantization} saves memory on a CPU, but decodes"
            " more slowly than bfloat16; for speed, use engine=openvino engine.weights=int8 or"
            " engine=llama_cpp engine.weights=q8_0"
        )


def _untrained(plan: Plan, record: Record) -> Iterator[str]:
    is_trained = plan.keeps_all or record.trained_for_these_layers is not False
    if is_trained or record.correction:  # a correction is made for these layers
        return
    count = plan.target_kept if plan.exits else plan.num_kept
    train = "train them for these layers with `ulskip train`, or " if plan.unit == LAYER else ""
    yield (
        f"{plan.strategy} with {count} of {plan.num_layers} {UNIT_NAMES[plan.unit]}: the weights"
        f" were trained for other layers, so quality may suffer; {train}use the strategy and ratio"
        " of their training"
    )


def _uncompiled(config: Config, record: Record) -> Iterator[str]:
    how = config.decoding.compile
    if how in COMPILED and not record.compiled:
        yield (
            f"decoding.compile={how} had no effect: the {record.engine} engine does not compile"
            " this model's steps, so they were timed uncompiled; use engine=torch if it supports"
            " the model"
        )


def _depth_misses(config: Config, record: Record) -> Iterator[str]:
    target, mean = record.target_kept_layers, record.evaluated_mean_kept_layers
    if config.ratio_basis == "latency" or not target or not mean:
        return
    if abs(mean - target) <= DEPTH_TOLERANCE * target:
        return
    num_calibrated = (record.calibration or {}).get("examples", config.batch_size)
    advice = "change strategy.threshold or raise calibration.examples"
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
    yield (
        f"{record.strategy}: expected a mean depth of {target} layers, got {mean:.2f}, so the"
        f" speedup differs from the target; {advice}"
    )


def _misprediction(record: Record) -> Iterator[str]:
    predicted, speedup = record.predicted_speedup, record.speedup
    # the prediction for drafts is measured, and too few pairs contradict nothing
    if (
        not predicted
        or not speedup
        or record.draft_tokens
        or speedup.low is None
        or speedup.high is None
    ):
        return
    value, low, high = speedup.value, speedup.low, speedup.high
    is_near = 1 / PREDICTION_FACTOR <= value / predicted <= PREDICTION_FACTOR
    if not is_near and not low <= predicted <= high:
        yield (
            f"{record.strategy}: the cost model predicted a speedup of {predicted:.2f}, but"
            f" {value:.2f} was measured; it counts only the bytes of weights that a step reads, so"
            " rely on the measured speedup"
        )
