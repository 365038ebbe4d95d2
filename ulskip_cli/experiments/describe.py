"""The sections of a record that describe how a result was made: its schedule, tokens/s, engine,
weights and machine, and its warnings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import fmean

from ulskip_cli.core import environment, schedule
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.files import timestamp
from ulskip_cli.core.fingerprint import digest
from ulskip_cli.engines.base import BatchOutput, DraftStats, ExitStats
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.torch import kernels
from ulskip_cli.experiments.record import (
    DEPTH_TOLERANCE,
    Environment,
    Provenance,
    Record,
    ScheduleUsed,
    StageUsed,
    Throughput,
)
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.strategies.plan import Plan, is_trained_for

# values of batches that are added up
SUMMED = ("prompt_tokens", "generated_tokens", "decode_seconds", "total_seconds", "compile_seconds")


def describe_schedule(
    plan: Plan,
    outputs: Sequence[BatchOutput] = (),
    timed: Sequence[BatchOutput] = (),
) -> ScheduleUsed:
    """Return the schedule section of a row.

    The mean depth of steps is measured with early exit, in the `timed` pairs or else in `outputs`,
    and otherwise that of the plan. The mean depth of the answers in `outputs` is measured with
    early exit, follows from their lengths with stages, and is None otherwise.
    """
    planned = plan.mean_kept(plan.timed_tokens - 1)  # the prefill generates the first token
    evaluated = exit_depth = sum_exits(outputs).mean_depth  # None without early exit
    mean_kept = sum_exits(timed).mean_depth or exit_depth or planned
    if plan.later_stages and outputs:
        lengths = [len(ids) for output in outputs for ids in output.token_ids]
        evaluated = schedule.mean_kept(plan.stages, lengths)
    return ScheduleUsed(
        num_layers=plan.num_layers,
        kept_layers=plan.kept_layers,
        later_stages=tuple(StageUsed(**asdict(stage)) for stage in plan.later_stages),
        target_kept_layers=plan.target_kept,
        mean_kept_layers=mean_kept,
        evaluated_mean_kept_layers=evaluated,
        layer_ratio=plan.num_layers / mean_kept,
        predicted_speedup=plan.predicted_speedup,
    )


def measure_throughput(outputs: Sequence[BatchOutput], source: str) -> Throughput:
    """Compute tokens/s in both conventions; neither counts padding or ids after an EOS token.

    `decode_tokens_per_second` divides the decoded ids (all but each sequence's first) by the decode
    time only. `total_tokens_per_second` divides prompt and generated ids by prefill and decode
    time, as the paper counts.
    """
    total = {key: sum(getattr(output, key) for output in outputs) for key in SUMMED}
    decoded_tokens = sum(output.decoded_tokens for output in outputs)
    all_tokens = total["prompt_tokens"] + total["generated_tokens"]
    drafts = sum((output.drafts for output in outputs if output.drafts), DraftStats())
    exits = sum_exits(outputs)
    head_rows = [output.head_rows for output in outputs if output.head_rows is not None]
    decode_seconds = max(1e-9, total["decode_seconds"])  # 0 if every answer has one token
    return Throughput(
        **total,
        decode_tokens_per_second=decoded_tokens / decode_seconds,
        total_tokens_per_second=all_tokens / total["total_seconds"],
        throughput_from=source,
        acceptance_rate=drafts.accepted / drafts.drafted if drafts.drafted else None,
        mean_accepted_length=drafts.gained / drafts.checks if drafts.drafted else None,
        mean_draft_length=drafts.mean_length,
        head_rows=fmean(head_rows) if head_rows else None,
        exit_depths={str(depth): count for depth, count in exits.depths.items()} or None,
        exit_check_fraction=exits.check_seconds / decode_seconds if exits.depths else None,
    )


def bytes_per_step(plan: Plan, output: BatchOutput) -> int | None:
    """Return the bytes of weights, keys and values that a step reads halfway through an answer,
    whose decoding gave `output`; None if they are not known, or differ with what is decoded.
    """
    weights = plan.sizes.weights
    # A check of drafts reads more than a step.
    if weights is None or plan.drafts or plan.exits:
        return None
    steps = schedule.step_counts(plan.stages, output.steps)
    weight_bytes = weights.total / weights.staged_speedup(steps)
    positions = output.prompt_tokens + output.generated_tokens / 2
    kv_bytes = output.kept_kv_bytes / output.prompt_tokens * positions
    return round(weight_bytes + kv_bytes * plan.cached_share(output.steps))


def sum_exits(outputs: Sequence[BatchOutput]) -> ExitStats:
    """Sum the exit statistics of all batches."""
    return sum((output.exits for output in outputs if output.exits), ExitStats())


def describe_provenance(
    config: Config, plan: Plan, loaded: LoadedModel, decoder: Decoder, num_examples: int
) -> Provenance:
    """Return the provenance of a result: engine, device, weights and environment."""
    engine, engine_reason = decoder.engine(config.decoding)
    backend = decoder.backend(engine)
    build, device = dict(decoder.build or {}), str(loaded.model.device)
    engine_weights = build.pop("weights", None)
    return Provenance(
        finished_at=timestamp(),
        engine=engine.name,
        engine_reason=engine_reason,
        engine_weights=engine_weights,
        engine_build=build or None,
        linear_backend=backend.name,
        linear_backend_reason=backend.reason,
        device=device,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        **loaded.notes,
        trained_for_these_layers=is_trained_for(loaded.notes["trained_for"], plan),
        num_examples=num_examples,
        environment=Environment.model_validate(
            environment.versions() | environment.machine(device)
        ),
    )


def run_warnings(config: Config, plan: Plan, record: Record) -> tuple[str, ...]:
    """Return the warnings of the plan and of the finished run: one line for each difference between
    the requested settings and the actual run.
    """
    if record.task is None:  # random prompts say nothing about quality
        return *plan.warnings, *_adjustments(config, record)
    return (
        *plan.warnings,
        *_doubts_of_quality(config, plan, record),
        *_adjustments(config, record),
        *_depth_misses(config, record),
    )


def _adjustments(config: Config, record: Record) -> Iterator[str]:
    """Yield the warnings about a busy machine, truncated texts, batch size, a missing kernel, and
    slow quantized weights.
    """
    # beside another device, one thread starts the steps
    is_on_cpu = (record.device or "cpu").startswith("cpu")
    machine = record.environment
    threads = machine.threads if machine and is_on_cpu else 1
    fewer = ", or set OMP_NUM_THREADS to the number of free CPUs" if threads > 1 else ""
    if machine and environment.is_crowded(record.other_cpus, threads):
        yield (
            f"{record.strategy}: other processes used {record.other_cpus:.1f} CPUs during the timed"
            " pairs, so the times and speedups may be wrong; repeat the run with --force when they"
            f" have ended{fewer}"
        )
    if record.num_truncated_sources:
        yield (
            f"{record.num_truncated_sources} of {record.num_examples} sources were truncated to fit"
            " into the model's context, so quality may suffer; lower max_new_tokens or use"
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
    if reason := record.linear_backend_reason:
        is_missing = reason == kernels.build_failure()
        compiler = "; install a C++ compiler that works, e.g. g++" if is_missing else ""
        yield (
            f"decode steps ran layer by layer instead of in one call of the CPU kernels ({reason}),"
            f" so they may be slower{compiler}"
        )


def _doubts_of_quality(config: Config, plan: Plan, record: Record) -> Iterator[str]:
    """Yield the warnings about scores that say little, about weights and corrections that were made
    for other layers or another task, and about examples that were seen in training.
    """
    num_cut_off = record.degenerate.get("hit_limit", 0)
    if 2 * num_cut_off > (record.num_examples or 0):
        yield (
            f"{record.label} with {record.summary}: {num_cut_off} of {record.num_examples}"
            f" answers were cut off at max_new_tokens={config.answer_tokens}, so their scores say"
            " little about whole answers; raise it"
        )
    correction = record.correction
    trained_for_others = record.trained_for_these_layers is False  # None: unknown
    # With a correction, which is fitted to these layers, the training of the weights is no doubt.
    if trained_for_others and not plan.keeps_all and not correction:
        kept = f"{plan.target_kept} of {plan.num_layers} layers" if plan.exits else plan.summary
        yield (
            f"{plan.strategy} with {kept}: the weights were trained for other layers or another"
            " prompt_layers, so quality may suffer; train them for these layers with `ulskip"
            " train`, or use the strategy, ratio and prompt_layers of their training"
        )
    if correction and correction.prompt_layers not in (None, plan.prompt_layers):
        asked = f"prompt_layers={correction.prompt_layers}"
        yield (
            f"{record.strategy}: the correction was made for {asked}, so quality may suffer with"
            f" prompt_layers={plan.prompt_layers}; use {asked}"
        )
    yield from _trained_on(config, record)
    if correction and correction.task not in (None, record.task):
        yield (
            f"{record.strategy}: the correction was made on examples of task={correction.task};"
            " what keeps the quality of one task can lose that of another, so calibrate on"
            f" {record.task}"
        )


def _trained_on(config: Config, record: Record) -> Iterator[str]:
    """Warn if weights or an adapter were trained on evaluated examples."""
    corrected = (record.correction and getattr(record.correction, "training", None)) or {}
    end = config.offset + (record.num_examples or 0)
    for what, training in (("weights were", record.trained_for or {}), ("adapter was", corrected)):
        examples = training.get("trained_on")
        if not examples or digest(config.task.location) not in examples.get("locations", ()):
            continue
        if examples["first"] < end and config.offset < examples["end"]:
            yield (
                f"{record.strategy}: the {what} trained on examples of {record.dataset} that are"
                " evaluated here, so the scores may not hold for others; evaluate other data, or if"
                f" there is more, offset={examples['end']}"
            )


def _depth_misses(config: Config, record: Record) -> Iterator[str]:
    """Warn if the answers ran another mean number of layers than requested."""
    target, mean = record.target_kept_layers, record.evaluated_mean_kept_layers
    if not target or not mean:
        return
    if abs(mean - target) <= DEPTH_TOLERANCE * target:
        return
    strategy, advice = config.strategy, config.strategy.depth_advice
    num_calibrated = (record.calibration or {}).get("examples", config.batch_size)
    if "batch_size" in strategy.calibrated_for and num_calibrated < config.batch_size:
        advice = (
            f"{num_calibrated} calibration examples are fewer than batch_size={config.batch_size};"
            " raise calibration.examples"
        )
    yield (
        f"{record.strategy}: expected a mean depth of {target} layers, got {mean:.2f}, so the speed"
        f" of these answers differs from the target{advice and f'; {advice}'}"
    )
