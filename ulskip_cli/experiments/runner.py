"""Run one point from its configuration to its row: load, calibrate, decode, score, time, record,
save.

`ulskip run`, `ulskip bench`, the workers of a sweep and `api.evaluate` all call `run_point`. A
benchmark is a run without a task, which times random prompts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch

from ulskip_cli.core import environment
from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import Config, ModelConfig
from ulskip_cli.core.errors import RunError, StorageError
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.progress import NullProgress, ProgressCallback, ReportProgress
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.sampling import InvalidLogitsError
from ulskip_cli.engines.torch.packed_linear import choose_linear_backend
from ulskip_cli.experiments.agreement import AgreementMeter
from ulskip_cli.experiments.batch_checkpoints import BatchCheckpoints, digest
from ulskip_cli.experiments.calibration import calibrate_patches, calibrate_strategy, zero_patches
from ulskip_cli.experiments.descriptions import (
    ScheduleProvenance,
    describe_provenance,
    describe_schedule,
)
from ulskip_cli.experiments.evaluate import GeneratedAnswers, generate_answers, score_answers
from ulskip_cli.experiments.latency_target import (
    LINE_ROUNDS,
    MEET_PAIRS,
    MEET_ROUNDS,
    WARM_UP,
    Batches,
    LatencyTargetFit,
    fit_step_latency,
    make_pair_timer,
    solve_depth_for_speedup,
)
from ulskip_cli.experiments.paired_timing import TimedPairs, time_pairs
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.run_warnings import run_warnings
from ulskip_cli.experiments.sweep.jobs import SweepOutcome, failure_reason
from ulskip_cli.experiments.throughput import measure_throughput
from ulskip_cli.experiments.workload import (
    RANDOM_PROMPTS,
    Workload,
    check_same_tokens,
    encode_workload,
    timed_prompts,
)
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.loading import LoadedModel, load, load_tokenizer
from ulskip_cli.inference.skip_adapter import SkipAdapter, load_adapter
from ulskip_cli.strategies.cost import LatencyFit
from ulskip_cli.strategies.plan import Plan, make_plan

Value = TypeVar("Value")


@dataclass
class Session:
    """State that all points of a process share: weights, the full model's decoder and timings. Each
    is loaded or measured once.
    """

    progress: ProgressCallback = field(default_factory=NullProgress)
    _models: dict[str, LoadedModel] = field(default_factory=dict)
    _full: tuple[str, Decoder] | None = None
    _values: dict[str, Any] = field(default_factory=dict)

    def _once(
        self, key: str, phase: str, total: int, make: Callable[[ReportProgress], Value]
    ) -> Value:
        if key not in self._values:
            self._values[key] = make(self.progress.phase(phase, total))
        value: Value = self._values[key]
        return value

    def encode(self, point: ResolvedPoint) -> tuple[Workload, Workload | None]:
        """Encode a point's examples and held-out examples without weights; raise UsageError if the
        context is too short.
        """
        if point.task is None:
            return RANDOM_PROMPTS, None
        model, held_out = point.config.model, point.held_out
        tokenizer = self._once(
            f"tokenizer {model}", "encode", 0, lambda report: load_tokenizer(model)
        )
        workload = encode_workload(point, tokenizer)
        if held_out is None or tokenizer is None:
            return workload, None
        calibrating = replace(point, task=held_out.task, examples=held_out.examples)
        return workload, encode_workload(calibrating, tokenizer)

    def load(
        self, config: ModelConfig, seed: int, beside: LoadedModel | None = None
    ) -> LoadedModel:
        """Return the loaded model; only the last model and the model `beside` stay in memory."""
        key = f"{config} {seed if config.source == 'random' else ''}"
        if key not in self._models:
            self._full = None
            self._models = {name: kept for name, kept in self._models.items() if kept is beside}
            self.progress.phase(f"load {config.label}", 1)
            loaded = load(config, seed, self._values.get(f"tokenizer {config}"))
            compiling = "compile the CPU kernel, once per machine"
            choose_linear_backend(loaded.model, lambda: self.progress.phase(compiling, 0))
            self._models[key] = loaded
        return self._models[key]

    def full_decoder(self, config: Config, loaded: LoadedModel) -> Decoder:
        """Return the decoder of the baseline's model, which the points share, so that its steps are
        compiled once.
        """
        reference = baseline_config(config)
        key = f"{reference.model} {reference.seed} {reference.engine}"
        if self._full is None or self._full[0] != key:
            plan = make_plan(reference, loaded.metadata)
            self._full = key, Decoder(loaded.model, plan, loaded.tokenizer, engine=reference.engine)
        return self._full[1]

    def solve_depth(
        self, config: Config, loaded: LoadedModel, workload: Workload, rounds: int = MEET_ROUNDS
    ) -> LatencyTargetFit | None:
        """Find the mean depth whose measured speedup meets the target; return None unless
        ratio_basis=latency.
        """
        if config.ratio_basis != "latency" or not config.strategy.follows_ratio:
            return None
        fit = self.fit_latency(config, loaded, workload)
        batches, context = _timed(config, loaded, workload)
        plan_of = partial(make_plan, config, loaded.metadata)
        time_pair = make_pair_timer(loaded.model, plan_of, batches, context, config)
        report = self.progress.phase(f"solve depth for {config.ratio:g}x", rounds)
        return solve_depth_for_speedup(fit, config.ratio, time_pair, report, rounds)

    def fit_latency(self, config: Config, loaded: LoadedModel, workload: Workload) -> LatencyFit:
        """Time decode steps of several depths with the configured engine and batch size, once, and
        fit a line.
        """
        batches, context = _timed(config, loaded, workload)
        shapes = [tuple(ids.shape) for ids, _ in batches]  # [batch, prompt_len]
        key = (
            f"latency {config.model} {config.decoding} {config.engine} {shapes}"
            f" {choose_linear_backend(loaded.model).name}"
        )
        make, depth = (
            partial(Decoder, loaded.model, engine=config.engine),
            loaded.metadata.num_layers,
        )
        return self._once(
            key,
            "time the layers",
            WARM_UP + LINE_ROUNDS,
            lambda report: fit_step_latency(make, depth, batches, context, report),
        )


def _timed(
    config: Config, loaded: LoadedModel, workload: Workload
) -> tuple[Batches, DecodeContext]:
    """Return the batches and the settings with which depths are timed."""
    batches = timed_prompts(workload, config.batch_size, WARM_UP + MEET_PAIRS, loaded.model, config)
    return batches, DecodeContext(config.decoding, workload.pad_token_id, config.seed)


@dataclass(frozen=True)
class PreparedRun:
    """A resolved point with its weights loaded, its examples encoded and its schedule decided."""

    point: ResolvedPoint
    timed: Config  # the point's configuration, unless a benchmark compiles layers
    loaded: LoadedModel
    full: LoadedModel  # of the baseline, in most runs the same
    workload: Workload
    plan: Plan
    found: ScheduleProvenance
    started_at: float  # seconds on the clock of `time.monotonic`
    adapter: SkipAdapter | None = None  # corrects the views that skip layers


def run_point(
    point: ResolvedPoint, session: Session, baseline: Record | None = None
) -> list[Record]:
    """Run one point, and its full baseline first if none is stored; return the records, the point's
    own record last.

    A given `baseline` may come from any machine; a stored baseline must come from a machine like
    this one. Raises UsageError for an unsupported request, and RunError if the run fails.
    """
    folder = ResultsFolder.of(point.config)
    if point.baseline and baseline is None:
        baseline = folder.record(point.baseline.run_id, _is_from_here)
        if baseline is None and point.config.baseline_model:
            baseline = run_point(point.baseline, session)[-1]
    run = prepare_run(point, session)
    if point.baseline is None or (run.plan.is_full_model and not point.config.has_other_baseline):
        return [_measure(run, session)]
    if baseline is None:
        full_run = replace(
            run,
            point=point.baseline,
            timed=point.baseline.config,
            plan=make_plan(point.baseline.config, run.loaded.metadata),
            found=ScheduleProvenance(),
            adapter=None,
        )
        baseline = _measure(full_run, session)
        run = replace(run, started_at=time.monotonic())
    return [baseline, _measure(run, session, baseline)]


def run_points(
    points: Sequence[ResolvedPoint],
    session: Session,
    run_one: Callable[[ResolvedPoint, Session], list[Record]] = run_point,
) -> SweepOutcome:
    """Run points of one results folder one after another, without resuming finished ones. A failed
    point does not stop the others; the error of a single point is raised.
    """
    folder, outcome = ResultsFolder.of(points[0].config), SweepOutcome(len(points))
    folder.check_writable()
    try:
        if moved := folder.quarantine_corrupt_lines():
            session.progress.note(moved)
        for number, point in enumerate(points, start=1):
            if len(points) > 1:
                session.progress.point(number, len(points))
            try:
                outcome.records |= {record.id: record for record in run_one(point, session)}
            except Exception as error:
                if len(points) == 1 or isinstance(error, StorageError):
                    raise
                label = f"{point.config.strategy.name} ratio {point.config.ratio:g}"
                outcome.failures.append(f"{label}: {failure_reason(error)}")
    finally:
        folder.remove_if_empty()
    return outcome


def _is_from_here(record: Record) -> bool:
    """True if a record was measured on a machine like this one, with the same number of threads."""
    where = record.environment
    return where is not None and environment.is_like_here(
        where.model_dump(), record.device or "cpu", ("threads",)
    )


def prepare_run(point: ResolvedPoint, session: Session, timed: Config | None = None) -> PreparedRun:
    """Encode and load, and decide the schedule and the corrections of a point by calibration and
    timing.
    """
    started_at, asked = time.monotonic(), point.config
    workload, held_out = session.encode(point)
    loaded = full = session.load(asked.model, asked.seed)
    if point.baseline and asked.baseline_model:
        check_same_tokens(workload, session.encode(point.baseline)[0])
        full = session.load(point.baseline.config.model, asked.seed, beside=loaded)
    if fingerprint(asked.model) != point.fingerprint:
        raise RunError(
            f"the weights of {asked.model.path} changed since the run was prepared; repeat the run"
        )
    config, calibration = calibrate_strategy(asked, loaded, held_out, session.progress)
    latency = session.solve_depth(timed or config, loaded, workload)
    plan = make_plan(config, loaded.metadata, latency.depth if latency else None)
    if point.task:
        patches, patch = calibrate_patches(config, loaded, held_out, plan, session.progress)
    else:
        patches, patch = zero_patches(config, loaded, plan)
    trained, skip_adapter = load_adapter(config, plan)
    found = ScheduleProvenance(latency, calibration, patch, skip_adapter)
    adapter = patches or trained
    return PreparedRun(
        point, timed or asked, loaded, full, workload, plan, found, started_at, adapter
    )


def make_decoders(
    run: PreparedRun, session: Session, baseline: Record | None = None
) -> tuple[Decoder, Decoder]:
    """Return the decoders of the full model and of the schedule; both are the same object if no
    layer is skipped.
    """
    config, loaded = run.point.config, run.loaded
    decoder = Decoder(loaded.model, run.plan, loaded.tokenizer, run.adapter, config.engine)
    if run.plan.is_full_model and not baseline:
        return decoder, decoder
    return session.full_decoder(config, run.full), decoder


def _measure(run: PreparedRun, session: Session, baseline: Record | None = None) -> Record:
    """Decode, score and time a prepared run, and store its record."""
    point, config, plan, loaded = run.point, run.point.config, run.plan, run.loaded
    progress, folder = session.progress, ResultsFolder.of(config)
    torch.manual_seed(config.seed)
    full, decoder = make_decoders(run, session, baseline)
    # values on which answers depend and that are not a part of the id
    answered_by = [plan.as_dict(), run.found.patch, run.found.skip_adapter, run.workload.prompts]
    origin = {
        **environment.origin(str(loaded.model.device)),
        "linear_backend": decoder.linear_backend(config.decoding).name,
        "answered_by": digest(answered_by),
    }
    checkpoints = BatchCheckpoints(folder.checkpoint_path(point.run_id), origin, run.started_at)
    answers, quality, timed = None, None, None
    if run.workload.encoded is not None:
        reference = folder.generations(baseline.id) if baseline else []
        hypotheses = [answer["hypothesis"] for answer in reference] if baseline else None
        scoring_decoder = full if config.decoding.draft_tokens else decoder
        try:
            answers = generate_answers(decoder, run.workload, config, progress, checkpoints)
            # saved before scoring, which may fail
            folder.save_generations(point.run_id, answers.generations)
            quality = score_answers(answers, run.workload, scoring_decoder, hypotheses, progress)
            if reference and not (config.decoding.draft_tokens or config.has_other_baseline):
                meter = AgreementMeter(
                    full,
                    run.workload.prompts,
                    [answer["token_ids"] for answer in reference],
                    BatchSize(answers.batch_size.used),
                    run.workload.pad_token_id,
                )
                report = progress.phase(f"{answers.strategy}: agreement", len(reference))
                quality = quality.replace(**meter.measure(decoder, report))
        except InvalidLogitsError:
            checkpoints.remove()
            raise
    if config.speed.enabled:
        fixed = run.timed.replace(speed=config.speed.replace(new_tokens=plan.timed_tokens))
        timed = time_pairs(
            full if config.baseline else None, decoder, run.workload, fixed, progress
        )
    progress.phase("write", 0)
    record = make_record(run, decoder, answers, timed, baseline)
    record = record.join(*([quality] if quality else []), wall_seconds=checkpoints.elapsed_seconds)
    record = record.replace(warnings=run_warnings(config, plan, record))
    folder.save(config, record, answers.generations if answers else None)
    checkpoints.remove()
    return record


def make_record(
    run: PreparedRun,
    decoder: Decoder,
    answers: GeneratedAnswers | None,
    timed: TimedPairs | None,
    baseline: Record | None,
) -> Record:
    """Return the record of a measured point, without quality scores."""
    point, config, plan = run.point, run.point.config, run.plan
    asked = point.identity.replace(
        chat=run.workload.chat,
        prompt_layers=plan.prompt_layers,
        baseline_id=baseline.id if baseline else None,
        correction=run.found.correction,
    )
    pairs, generations = timed.strategy if timed else [], answers.generations if answers else []
    outputs, source = (answers.outputs, "evaluation") if answers else (pairs, "timed pairs")
    # Random weights have no answers, but exits in timed pairs.
    described = describe_schedule(plan, run.found, outputs if answers or plan.exits else [], pairs)
    if config.has_other_baseline:  # the cost model compares layers of one model in one engine
        described = described.replace(predicted_speedup=None)
    throughput = measure_throughput(outputs, source) if outputs else None
    if throughput and timed and not answers:
        throughput = throughput.replace(compile_seconds=timed.compile_seconds)
    sections = (
        throughput,
        timed.timing() if timed else None,
        describe_provenance(config, plan, run.loaded, decoder, len(generations)),
    )
    return Record.joined(asked, described, *(section for section in sections if section))
