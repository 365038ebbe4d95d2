"""Warnings of a finished run: one line for each difference between request and run."""

from ulskip_cli.core.config_schema import Config
from ulskip_cli.experiments.record import RunRecord
from ulskip_cli.inference import linear_kernel
from ulskip_cli.strategies.plan import Plan

DEPTH_TOLERANCE = 0.05
"""Share by which the mean depth on the evaluated examples may differ from the target without a warning."""


def run_warnings(config: Config, plan: Plan, record: RunRecord) -> tuple[str, ...]:
    """Return the warnings of the plan and of the finished run."""
    return (*plan.warnings, *_untrained(plan, record), *adjustments(config, record), *_depth_misses(config, record))


def adjustments(config: Config, record: RunRecord) -> list[str]:
    """Return one line for each truncated input, batch size reduced to fit into memory, and kernel that was not built."""
    lines = []
    quality, timing, strategy = record.quality, record.timing, record.identity.strategy
    if quality and quality.num_truncated_sources and record.provenance:
        total = record.provenance.num_examples
        lines.append(f"{quality.num_truncated_sources} of {total} sources were truncated to fit into the model's context")
    used = {
        "evaluated": quality.evaluated_batch_size if quality else None,
        "timed": timing.timed_batch_size if timing else None,
    }
    for what, size in used.items():
        if size is not None and size < config.batch_size:
            lines.append(f"{strategy}: batches of {config.batch_size} did not fit into memory; {what} in batches of {size}")
    ran, failure = record.provenance, linear_kernel.build_failure()
    if ran and failure and failure == ran.linear_backend_reason:
        lines.append(f"the kernel for decoding on a CPU was not built ({failure}); {ran.linear_backend} was used instead")
    return lines


def _untrained(plan: Plan, record: RunRecord) -> list[str]:
    if plan.keeps_all or record.provenance is None or record.provenance.trained_for_these_layers is not False:
        return []
    count = plan.target_kept if plan.exits else plan.num_kept
    return [f"{plan.strategy} with {count} of {plan.num_layers} layers: the weights were trained for other layers"]


def _depth_misses(config: Config, record: RunRecord) -> list[str]:
    """Warn if the mean depth of the evaluated answers misses the target."""
    schedule = record.schedule
    if schedule is None or config.ratio_basis == "latency":
        return []
    target, mean = schedule.target_kept_layers, schedule.evaluated_mean_kept_layers
    if not target or not mean or abs(mean - target) <= DEPTH_TOLERANCE * target:
        return []
    exits = record.throughput is not None and record.throughput.exit_depths
    num_calibrated = (schedule.calibration or {}).get("examples", config.batch_size)
    if not exits:
        why = ", because the answers differ in length from those that the horizon was calibrated on"
    elif num_calibrated < config.batch_size:
        why = f"; {num_calibrated} calibration examples fill no batch of {config.batch_size}, raise calibration.examples"
    else:
        why = ""
    return [f"{record.identity.strategy}: {mean:.2f} layers ran on average, the target was {target}{why}"]
