"""Run one point from its configuration to its row: load, calibrate, decode, score, time, record,
save.

`ulskip run`, `api.evaluate` and the jobs of a sweep, a benchmark or a tuning call `run_point`. A
benchmark is a run without a task, which times random prompts.
"""

import time
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedTokenizerBase

from ulskip_cli.core import environment
from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import ModelConfig
from ulskip_cli.core.engines import Engine
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.fingerprint import key
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.sampling import InvalidLogitsError
from ulskip_cli.engines.scoring import ForcedTexts
from ulskip_cli.engines.torch import kernels
from ulskip_cli.experiments.calibration import LOSS_BATCH, HeldOutEvaluator, zero_patches
from ulskip_cli.experiments.describe import (
    bytes_per_step,
    describe_provenance,
    describe_schedule,
    measure_throughput,
    run_warnings,
)
from ulskip_cli.experiments.evaluate import (
    BatchCheckpoints,
    GeneratedAnswers,
    Workload,
    encode_workload,
    generate_answers,
    measure_by_teacher_forcing,
    score_answers,
)
from ulskip_cli.experiments.paired_timing import TimedPairs, time_pairs
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.record import CorrectionUsed, Quality, Record, Row, Section
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.inference.batching import BatchSize, free_unused_memory
from ulskip_cli.inference.loading import LoadedModel, load, load_tokenizer
from ulskip_cli.inference.skip_adapter import SkipAdapter, load_adapter
from ulskip_cli.strategies.plan import Plan, make_plan, step_sizes
from ulskip_cli.tasks import metrics

NOISE_SHARE = 1 / 3  # of speed.seconds: the time in which the full model is timed against itself


@dataclass
class Session:
    """State that all points of a process share: tokenizers, weights and the full model's decoder.
    Each is loaded once.
    """

    progress: ProgressCallback = field(default_factory=ProgressCallback)
    _tokenizers: dict[str, PreTrainedTokenizerBase | None] = field(default_factory=dict)
    _model: tuple[tuple[ModelConfig, int], LoadedModel] | None = None
    _full: tuple[Engine, Decoder] | None = None

    def encode(self, point: ResolvedPoint) -> tuple[Workload | None, Workload | None]:
        """Encode a point's examples and held-out examples without weights; raise UsageError if the
        context is too short. A workload of None stands for random prompts, or for none held out.
        """
        if point.data is None:
            return None, None
        tokenizer = self.tokenizer(point.config.model)
        calibrating = replace(point, data=point.held_out)
        return encode_workload(point, tokenizer), encode_workload(calibrating, tokenizer)

    def tokenizer(self, config: ModelConfig) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of a model; None for random weights."""
        name = key(config)
        if name not in self._tokenizers:
            self._tokenizers[name] = load_tokenizer(config, self.progress)
        return self._tokenizers[name]

    def load(self, config: ModelConfig, seed: int) -> LoadedModel:
        """Return the loaded model; only the last model stays in memory."""
        wanted = config, seed if config.source == "random" else 0  # the seed draws random weights
        if self._model is None or self._model[0] != wanted:
            self._model = self._full = None  # a decoder would keep the weights that are freed here
            free_unused_memory()
            self.progress.phase(f"load {config.label}")
            loaded = load(config, seed, self.progress)
            if loaded.model.device.type == "cpu":
                compiling = "compile the CPU kernels, once per machine"
                kernels.load_kernels(lambda: self.progress.phase(compiling))
            self._model = wanted, loaded
        return self._model[1]

    def decoders(self, run: "PreparedRun") -> tuple[Decoder, Decoder]:
        """Return the decoders of the full model and of the schedule; all points share the full
        model's. A baseline is timed against itself: in a library one decoder is both sides, so
        that the library holds the weights once, and in torch each side has its own sessions.
        """
        config, loaded = run.point.config, run.loaded
        decoder = Decoder(Views.of(loaded.model, run.plan, run.adapter), config.engine)
        if run.is_baseline:
            return decoder, decoder if decoder.is_runtime else Decoder(decoder.views, config.engine)
        engine = baseline_config(config).engine
        if self._full is None or self._full[0] != engine:
            self._full = engine, Decoder(Views.of(loaded.model, run.plan.full), engine)
        return self._full[1], decoder


@dataclass(frozen=True)
class PreparedRun:
    """A resolved point with its weights loaded, its examples encoded and its schedule decided."""

    point: ResolvedPoint
    loaded: LoadedModel
    workload: Workload | None  # None: random prompts
    plan: Plan
    calibration: Row | None  # what a row stores of a calibration
    correction: CorrectionUsed | None
    adapter: SkipAdapter | None  # corrects the views that skip layers
    started_at: float  # seconds on the clock of `time.monotonic`

    @property
    def is_baseline(self) -> bool:
        """True if the run is its own baseline, from which it differs in nothing."""
        return self.plan.is_full_model and not self.point.config.crosses_engines


def run_point(
    point: ResolvedPoint, session: Session, baseline: Record | None = None
) -> list[Record]:
    """Run one point, and its full baseline first if none is stored; return the records, the point's
    own record last.

    A given `baseline` may come from any machine; a stored baseline must come from a machine like
    this one. Raises UsageError for an unsupported request, and RunError if the run fails.
    """
    if point.baseline and baseline is None:
        stored = ResultsFolder.of(point.config).record(
            point.baseline.run_id, lambda record: record.is_from_here("threads")
        )
        baseline = stored or run_point(point.baseline, session)[-1]
    run = prepare_run(point, session)
    if baseline and not run.is_baseline:
        return [baseline, _measure(run, session, baseline)]
    return [_measure(run, session)]


def prepare_run(point: ResolvedPoint, session: Session) -> PreparedRun:
    """Encode and load, and decide the schedule and the corrections of a point by calibration."""
    started_at, config = time.monotonic(), point.config
    workload, held_out = session.encode(point)
    loaded = session.load(config.model, config.seed)
    if loaded.files.fingerprint != point.files.fingerprint:
        raise RunError(
            f"the weights of {config.model.path} changed since the run was prepared; repeat the run"
        )
    # Before weights are downloaded or drawn, the point has no sizes of them.
    plan = replace(point.plan, sizes=step_sizes(config, loaded.metadata))
    calibration = evaluator = None
    if held_out:
        evaluator = HeldOutEvaluator(config, loaded, held_out, session.progress)
        config, calibration = evaluator.calibrate_strategy()
    if calibration:
        plan = make_plan(config, loaded.metadata)
    adapter, entry = load_adapter(config, plan)
    used = CorrectionUsed(name="adapter", **entry) if entry else None
    if config.correction.is_fitted and not plan.keeps_all:
        if evaluator:
            adapter, used = evaluator.calibrate_patches(plan)
        else:  # of a benchmark
            adapter, used = zero_patches(config, loaded, plan)
    return PreparedRun(
        point=point,
        loaded=loaded,
        workload=workload,
        plan=plan,
        calibration=calibration,
        correction=used,
        adapter=adapter,
        started_at=started_at,
    )


def _measure(run: PreparedRun, session: Session, baseline: Record | None = None) -> Record:
    """Decode, score and time a prepared run, and store its record."""
    point, config, workload = run.point, run.point.config, run.workload
    progress, folder = session.progress, ResultsFolder.of(config)
    torch.manual_seed(config.seed)
    full, decoder = session.decoders(run)
    # values on which answers depend and that are not a part of the id
    origin = {
        **environment.origin(str(run.loaded.model.device)),
        "linear_backend": decoder.backend(decoder.engine(config.decoding)[0]).name,
        "answered_by": key(run.plan, run.correction, workload and workload.prompts),
    }
    checkpoints = BatchCheckpoints(folder.checkpoint_path(point.run_id), origin, run.started_at)
    try:
        answers, quality = _evaluate(run, full, decoder, baseline, checkpoints, progress)
    except InvalidLogitsError:
        checkpoints.remove()
        raise
    timed = None
    if config.speed.enabled:
        # The full model against itself shows noise alone.
        share = NOISE_SHARE if run.is_baseline else 1
        speed = config.speed.replace(
            seconds=share * config.speed.seconds, new_tokens=run.plan.timed_tokens
        )
        side = full if config.baseline else None
        timed = time_pairs(side, decoder, workload, config.replace(speed=speed), progress)
    progress.phase("write")
    if answers:  # with their row, because an earlier row keeps its answers until then
        folder.save_generations(point.run_id, answers.generations)
    record = store_record(
        run,
        decoder,
        timed,
        quality,
        answers,
        wall_seconds=checkpoints.elapsed_seconds,
        baseline_id=baseline and baseline.id,
    )
    checkpoints.remove()
    return record


def _evaluate(
    run: PreparedRun,
    full: Decoder,
    decoder: Decoder,
    baseline: Record | None,
    checkpoints: BatchCheckpoints,
    progress: ProgressCallback,
) -> tuple[GeneratedAnswers | None, Quality]:
    """Generate and score answers, and measure the decode loss of the references and the agreement
    with the baseline's answers. With answers=false, measure the loss alone; random prompts have
    neither.

    Tasks whose answers are right or wrong have no loss beside their answers.
    """
    config, workload = run.point.config, run.workload
    if workload is None:
        return None, Quality()
    answers, quality, stored = None, Quality(), list[Row]()
    if config.answers and baseline:
        stored = ResultsFolder.of(config).generations(baseline.id)
    texts = ForcedTexts(workload.prompts, [], BatchSize(LOSS_BATCH), workload.pad_token_id)
    names = workload.task.scoring().metrics
    judged = config.answers and all(metrics.METRICS[name].is_binary for name in names)
    if workload.examples[0].reference and not judged:
        texts.references = [example.response_ids for example in workload.encoded]
    # No agreement with drafts, whose answers are the full model's, of two engines, or in a library,
    # which returns no logits.
    if not (config.decoding.draft_tokens or config.crosses_engines or decoder.is_runtime):
        texts.answers = [answer["token_ids"] for answer in stored]
    if config.answers:
        hypotheses = [answer["hypothesis"] for answer in stored] if baseline else None
        answers = generate_answers(decoder, workload, config, progress, checkpoints, texts)
        quality = score_answers(answers, workload, hypotheses, progress)
        texts.size.used = min(LOSS_BATCH, answers.batch_size.used)
    if texts.references:
        truncated = sum(example.truncated_response for example in workload.encoded)
        quality = quality.replace(num_truncated_references=truncated)
    if config.decoding.drafts_with_layers:  # they do not decide the answers
        decoder = Decoder(Views.of(run.loaded.model, run.plan.full), config.engine)
    values = measure_by_teacher_forcing(texts, decoder, full, config.strategy.name, progress)
    return answers, quality.replace(**values)


def store_record(
    run: PreparedRun,
    decoder: Decoder,
    timed: TimedPairs | None,
    quality: Quality,
    answers: GeneratedAnswers | None,
    **values: object,
) -> Record:
    """Make the record of a measured point, store it with its warnings, and return it. `values` are
    further fields of the record.
    """
    config, plan, workload = run.point.config, run.plan, run.workload
    pairs = timed.strategy if timed else ()
    outputs, source = (answers.outputs, "evaluation") if answers else (pairs, "timed pairs")
    # Random weights have no answers, but exits in timed pairs.
    described = describe_schedule(plan, outputs if answers or plan.exits else [], pairs)
    if config.crosses_engines:  # the cost model compares layers in one engine
        described = described.replace(predicted_speedup=None)
    provenance = describe_provenance(config, plan, run.loaded, decoder)
    sections: list[Section] = [run.point.identity, described, provenance, quality]
    if outputs:
        sections.append(measure_throughput(outputs, source))
    if timed:
        sections.append(timed.timing())
        values["step_bytes"] = bytes_per_step(plan, pairs[0])
        if not answers:
            values["compile_seconds"] = timed.compile_seconds
    if workload:
        values["chat"] = workload.formatter.template.chat
    record = Record.joined(
        *sections,
        num_examples=len(workload.examples) if workload else 0,
        correction=run.correction,
        calibration=run.calibration,
        **values,
    )
    record = record.replace(warnings=run_warnings(config, plan, record))
    ResultsFolder.of(config).save(config, record)
    return record
