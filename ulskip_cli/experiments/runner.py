"""Run one point from its configuration to its row: load, calibrate, decode, score, time, record,
save.

`ulskip run`, the workers of a sweep and `api.evaluate` all call `run_point`. A benchmark
(`benchmark.py`) is a run without a task, which times random prompts.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ulskip_cli.core import environment
from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import Config, ModelConfig
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.progress import NullProgress, ProgressCallback
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.sampling import InvalidLogitsError
from ulskip_cli.engines.torch.packed_linear import choose_linear_backend
from ulskip_cli.experiments.batch_checkpoints import BatchCheckpoints, digest
from ulskip_cli.experiments.calibration import calibrate_strategy
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
from ulskip_cli.experiments.patches import calibrate_patches, zero_patches
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.run_warnings import run_warnings
from ulskip_cli.experiments.throughput import measure_throughput
from ulskip_cli.experiments.workload import (
    RANDOM_PROMPTS,
    Workload,
    check_same_tokens,
    encode_workload,
    timed_prompts,
)
from ulskip_cli.inference.loading import LoadedModel, load, load_tokenizer
from ulskip_cli.inference.skip_adapter import SkipAdapter, load_adapter
from ulskip_cli.strategies.cost import LatencyFit
from ulskip_cli.strategies.plan import Plan, make_plan


@dataclass
class Session:
    """State that the points of one process share, each loaded or measured once: weights, the full
    model's decoder, timings.
    """

    progress: ProgressCallback = field(default_factory=NullProgress)
    _models: dict[str, LoadedModel] = field(default_factory=dict)
    _tokenizers: dict[str, Any] = field(default_factory=dict)
    _latencies: dict[str, LatencyFit] = field(default_factory=dict)
    _full: tuple[str, Decoder] | None = None

    def encode(self, point: ResolvedPoint) -> tuple[Workload, Workload | None]:
        """Encode a point's examples and held-out examples without weights; raise UsageError if the
        context is too short.
        """
        if point.task is None:
            return RANDOM_PROMPTS, None
        self.progress.phase("encode", 0)
        key = str(point.config.model)
        if key not in self._tokenizers:
            self._tokenizers[key] = load_tokenizer(point.config.model)
        tokenizer = self._tokenizers[key]
        workload = encode_workload(point, tokenizer)
        held_out = point.held_out
        if held_out is None or tokenizer is None:
            return workload, None
        return workload, encode_workload(
            replace(point, task=held_out.task, examples=held_out.examples), tokenizer
        )

    def load(
        self, config: ModelConfig, seed: int, beside: LoadedModel | None = None
    ) -> LoadedModel:
        """Return the loaded model; only the last loaded model, and `beside`, are kept in memory and
        not loaded again.
        """
        key = f"{config} {seed if config.source == 'random' else ''}"
        if key not in self._models:
            self._models, self._full = (
                {name: kept for name, kept in self._models.items() if kept is beside},
                None,
            )
            self.progress.phase(f"load {config.label}", 1)
            loaded = load(config, seed, self._tokenizers.get(str(config)))
            choose_linear_backend(
                loaded.model,
                lambda: self.progress.phase("compile the CPU kernel, once per machine", 0),
            )
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
            f"{config.model} {config.decoding} {config.engine} {shapes}"
            f" {choose_linear_backend(loaded.model).name}"
        )
        if key not in self._latencies:
            report = self.progress.phase("time the layers", WARM_UP + LINE_ROUNDS)
            make = partial(Decoder, loaded.model, engine=config.engine)
            self._latencies[key] = fit_step_latency(
                make, loaded.metadata.num_layers, batches, context, report
            )
        return self._latencies[key]


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
    if point.baseline and point.config.baseline_model and baseline is None:
        baseline = stored_baseline(point) or run_point(point.baseline, session)[-1]
    run = prepare_run(point, session)
    if point.baseline is None or (run.plan.is_full_model and not point.config.has_other_baseline):
        return [_measure(run, session)]
    baseline = baseline or stored_baseline(point)
    if baseline is None:
        full = make_plan(point.baseline.config, run.loaded.metadata)
        full_run = replace(
            run,
            point=point.baseline,
            timed=point.baseline.config,
            plan=full,
            found=ScheduleProvenance(),
            adapter=None,
        )
        baseline = _measure(full_run, session)
        run = replace(run, started_at=time.monotonic())
    return [baseline, _measure(run, session, baseline)]


def prepare_run(point: ResolvedPoint, session: Session, timed: Config | None = None) -> PreparedRun:
    """Encode and load, and decide the schedule and the corrections of a point by calibration and
    timing.
    """
    started_at = time.monotonic()
    workload, held_out = session.encode(point)
    loaded = full = session.load(point.config.model, point.config.seed)
    if point.baseline and point.config.baseline_model:
        check_same_tokens(workload, session.encode(point.baseline)[0])
        full = session.load(point.baseline.config.model, point.config.seed, beside=loaded)
    if fingerprint(point.config.model) != point.fingerprint:
        raise RunError(
            f"the weights of {point.config.model.path} changed since the run was prepared; repeat"
            " the run"
        )
    config, calibration = calibrate_strategy(point.config, loaded, held_out, session.progress)
    latency = session.solve_depth(timed or config, loaded, workload)
    plan = make_plan(config, loaded.metadata, latency.depth if latency else None)
    if point.task:
        patches, patch = calibrate_patches(config, loaded, held_out, plan, session.progress)
    else:
        patches, patch = zero_patches(config, loaded, plan)
    trained, skip_adapter = load_adapter(config, plan)
    provenance = ScheduleProvenance(latency, calibration, patch, skip_adapter)
    return PreparedRun(
        point,
        timed or point.config,
        loaded,
        full,
        workload,
        plan,
        provenance,
        started_at,
        patches or trained,
    )


def stored_baseline(point: ResolvedPoint) -> Record | None:
    """Return the finished baseline of a point if its times were measured on a machine like this
    one.
    """
    assert point.baseline is not None
    return ResultsFolder.of(point.config).record(point.baseline.run_id, is_from_here)


def is_from_here(record: Record) -> bool:
    """True if a record was measured on a machine like this one, with the same number of threads."""
    where = record.environment
    return where is not None and environment.is_like_here(
        where.model_dump(), record.device or "cpu", ("threads",)
    )


def make_decoders(
    run: PreparedRun, session: Session, baseline: Record | None = None
) -> tuple[Decoder, Decoder]:
    """Return the decoders of the full model and of the schedule; they are one if nothing is
    skipped.
    """
    config, loaded = run.point.config, run.loaded
    decoder = Decoder(loaded.model, run.plan, loaded.tokenizer, run.adapter, config.engine)
    if run.plan.is_full_model and not baseline:
        return decoder, decoder
    return session.full_decoder(config, run.full), decoder


def _measure(run: PreparedRun, session: Session, baseline: Record | None = None) -> Record:
    progress, config, loaded, point, plan = (
        session.progress,
        run.point.config,
        run.loaded,
        run.point,
        run.plan,
    )
    torch.manual_seed(config.seed)
    folder = ResultsFolder.of(config)
    full, decoder = make_decoders(run, session, baseline)
    backend = decoder.linear_backend(config.decoding).name
    answered_by = [
        plan.as_dict(),
        run.found.patch,
        run.found.skip_adapter,
        run.workload.prompts,
    ]  # what the id does not decide
    origin = {
        **environment.origin(str(loaded.model.device)),
        "linear_backend": backend,
        "answered_by": digest(answered_by),
    }
    checkpoints = BatchCheckpoints(folder.checkpoint_path(point.run_id), origin, run.started_at)
    answers, quality, timed = None, None, None
    if run.workload.encoded is not None:
        hypotheses = (
            [generation["hypothesis"] for generation in folder.generations(baseline.id)]
            if baseline
            else None
        )
        scoring_decoder = full if config.decoding.draft_tokens else decoder
        try:
            answers = generate_answers(decoder, run.workload, config, progress, checkpoints)
            folder.save_generations(
                point.run_id, answers.generations
            )  # saved before scoring, which may fail
            quality = score_answers(answers, run.workload, scoring_decoder, hypotheses, progress)
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
    config, plan = run.point.config, run.plan
    asked = run.point.identity.replace(
        chat=run.workload.chat,
        prompt_layers=plan.prompt_layers,
        baseline_id=baseline.id if baseline else None,
        correction=run.found.correction,
    )
    pairs = timed.strategy if timed else []
    outputs, source = (answers.outputs, "evaluation") if answers else (pairs, "timed pairs")
    natural = (
        outputs if answers or plan.exits else []
    )  # random weights have no answers, but exits in timed pairs
    described = describe_schedule(plan, run.found, natural, pairs)
    if config.has_other_baseline:  # the cost model compares layers of one model in one engine
        described = described.replace(predicted_speedup=None)
    throughput = measure_throughput(outputs, source) if outputs else None
    if throughput and timed and not answers:
        throughput = throughput.replace(compile_seconds=timed.compile_seconds)
    sections = [
        throughput,
        timed.timing() if timed else None,
        describe_provenance(
            config, plan, run.loaded, decoder, len(answers.generations) if answers else 0
        ),
    ]
    return Record.joined(asked, described, *(section for section in sections if section))
