"""Run one point from its configuration to its row: load, calibrate, decode, score, time, record,
save.

`run_jobs` calls `run_point` for each job of a run, a sweep, a benchmark or a tuning. A benchmark is
a run without a task, which times random prompts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from ulskip_cli.core import environment
from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import Config, ModelConfig
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.fingerprint import digest
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import BatchOutput, Views
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
    TaskAnswers,
    Workload,
    answer_request,
    encode_examples,
    generate_answers,
    measure_by_teacher_forcing,
    score_answers,
)
from ulskip_cli.experiments.paired_timing import (
    Pair,
    TimedPairs,
    random_prompts,
    task_prompts,
    time_pairs,
    timed_request,
)
from ulskip_cli.experiments.point import Point, TaskExamples
from ulskip_cli.experiments.record import CorrectionUsed, Outcome, Quality, Record, Section
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.inference.batching import BatchSize, free_unused_memory
from ulskip_cli.inference.loading import LoadedModel, load, load_tokenizer
from ulskip_cli.inference.shallow_view import text_config
from ulskip_cli.inference.skip_adapter import SkipAdapter, load_adapter
from ulskip_cli.strategies.plan import Plan, step_sizes
from ulskip_cli.tasks import metrics

NOISE_SHARE = 1 / 3  # of speed.seconds: the time in which the full model is timed against itself


@dataclass
class Models:
    """Owns the tokenizers, weights and full model's decoder that all points of a process share.
    Each is loaded once; only the last model stays in memory.
    """

    progress: ProgressCallback = field(default_factory=ProgressCallback)
    # by source and path of the model
    _tokenizers: dict[tuple[str, str], PreTrainedTokenizerBase] = field(default_factory=dict)
    _loaded: LoadedModel | None = None
    _full: Decoder | None = None  # of `_loaded`, in the engine of the last baseline

    def encode(self, point: Point, data: TaskExamples | None) -> Workload | None:
        """Encode the examples or the held-out examples of a point, without weights; raise
        UsageError if the context is too short.
        """
        return encode_examples(data, point, self.tokenizer(point.folder.model)) if data else None

    def tokenizer(self, config: ModelConfig) -> PreTrainedTokenizerBase:
        """Return the tokenizer of a model."""
        place = config.source, config.path
        if place not in self._tokenizers:
            self._tokenizers[place] = load_tokenizer(config, self.progress)
        return self._tokenizers[place]

    def load(self, point: Point) -> LoadedModel:
        """Return the loaded model of a point; raise RunError if its files changed since the point
        was made.
        """
        config = point.folder.model
        if self._loaded is None or self._loaded.folder.model != config:
            self._loaded = self._full = None  # both hold the weights that are freed here
            free_unused_memory()
            self.progress.phase(f"load {config.label}")
            loaded = load(config, self.progress)
            if loaded.model.device.type == "cpu":
                compiling = "compile the CPU kernels, once per machine"
                kernels.load_kernels(on_build=lambda: self.progress.phase(compiling))
            self._loaded = loaded
        if self._loaded.folder.fingerprint != point.folder.fingerprint:
            raise RunError(
                f"the weights of {config.path} changed since the run was prepared; repeat the run"
            )
        return self._loaded

    def decoders(self, run: "PreparedRun") -> "Decoders":
        """Return the decoders of a run; all points share the full model's.

        A baseline is timed against itself: in a library one decoder is both sides, so that the
        library holds the weights once, and in torch each side has its own sessions.
        """
        config, model = run.point.config, run.loaded.model
        strategy = Decoder(Views.of(model, run.plan, run.adapter), config.engine)
        if run.is_baseline and strategy.decodes_outside_torch:
            return Decoders(strategy, strategy)
        if run.is_baseline:
            return Decoders(Decoder(strategy.views, config.engine), strategy)
        engine = baseline_config(config).engine
        if self._full is None or self._full.requested_engine != engine:
            self._full = Decoder(Views.of(model, run.plan.full), engine)
        return Decoders(self._full, strategy)


class Decoders(NamedTuple):
    """The decoders of the two sides that a point compares."""

    full: Decoder  # the full model's
    strategy: Decoder  # the schedule's


@dataclass(frozen=True)
class PreparedRun:
    """A point with its weights loaded, its examples encoded and its schedule decided."""

    point: Point
    loaded: LoadedModel
    workload: Workload | None  # None: random prompts
    plan: Plan
    calibration: JsonObject | None  # what a row stores of a calibration
    correction: CorrectionUsed | None
    adapter: SkipAdapter | None  # corrects the views that skip layers
    started_at: float  # seconds on the clock of `time.monotonic`

    @property
    def is_baseline(self) -> bool:
        """True if the run is its own baseline, from which it differs in nothing."""
        return self.plan.is_full_model and not self.point.config.crosses_engines


def run_point(point: Point, models: Models, baseline: Record | None = None) -> Record:
    """Run one point, and store and return its record. `baseline` is the record of its full model,
    if it has one.

    Raises UsageError for an unsupported request, and RunError if the run fails.
    """
    run = prepare_run(point, models)
    if run.is_baseline:  # as with ratio=1: there is nothing to compare with
        baseline = None
    config, folder = point.config, ResultsFolder.of(point.config)
    torch.manual_seed(config.seed)
    decoders = models.decoders(run)
    origin = _origin_of_answers(run, decoders.strategy)
    checkpoints = BatchCheckpoints(folder.checkpoint_path(point.id), origin, run.started_at)
    try:
        answers, quality = _evaluate(run, decoders, baseline, checkpoints, models.progress)
    except InvalidLogitsError:
        checkpoints.remove()
        raise
    timed = _time(run, decoders, models.progress) if config.speed.enabled else None
    models.progress.phase("write")
    if answers:  # with their row, because an earlier row keeps its answers until then
        folder.save_generations(point.id, answers.generations)
    settings = point.settings.replace(
        baseline_id=baseline.id if baseline else None,
        correction=run.correction,
        chat=run.workload.formatter.template.chat if run.workload else None,
    )
    outcome = Outcome(wall_seconds=checkpoints.elapsed_seconds)
    record = _make_record(run, decoders.strategy, timed, answers, settings, quality, outcome)
    folder.save(record)
    checkpoints.remove()
    return record


def prepare_run(point: Point, models: Models) -> PreparedRun:
    """Encode and load, and decide the schedule and the corrections of a point by calibration."""
    started_at, config = time.monotonic(), point.config
    workload = models.encode(point, point.data)
    held_out = models.encode(point, point.held_out)
    loaded = models.load(point)
    evaluator = HeldOutEvaluator(config, loaded, held_out, models.progress) if held_out else None
    # Before weights are downloaded or drawn, the point has no sizes of them.
    plan = replace(point.plan, sizes=step_sizes(config, loaded.metadata, point.plan.needs))
    calibration = None
    if evaluator and not config.strategy.is_calibrated:
        plan, calibration = evaluator.calibrate_strategy()
    adapter, correction = _corrected(config, loaded, plan, evaluator)
    return PreparedRun(point, loaded, workload, plan, calibration, correction, adapter, started_at)


def _corrected(
    config: Config, loaded: LoadedModel, plan: Plan, evaluator: HeldOutEvaluator | None
) -> tuple[SkipAdapter | None, CorrectionUsed | None]:
    """Return the tensors that correct the layers of a plan, and what a row stores of them: patches
    are fitted by `evaluator` (None in a benchmark), an adapter is loaded.
    """
    if not config.correction.is_fitted:
        adapter, entry = load_adapter(config, plan)
        return adapter, CorrectionUsed(name="adapter", **entry) if entry else None
    if plan.keeps_all:
        return None, None
    return evaluator.calibrate_patches(plan) if evaluator else zero_patches(config, loaded, plan)


def _origin_of_answers(run: PreparedRun, decoder: Decoder) -> JsonObject:
    """Return values on which answers depend and that are not a part of the id: finished batches
    of another origin are not resumed.
    """
    engine, _ = decoder.engine(run.point.config.decoding)
    origin = environment.versions() | environment.machine(str(decoder.device))
    del origin["git_dirty"]  # may change between two attempts
    prompts = run.workload.prompts if run.workload else None
    return {
        **origin,
        "linear_backend": decoder.backend(engine).name,
        "answered_by": digest(run.calibration, run.correction, prompts),
    }


def _evaluate(
    run: PreparedRun,
    decoders: Decoders,
    baseline: Record | None,
    checkpoints: BatchCheckpoints,
    progress: ProgressCallback,
) -> tuple[TaskAnswers | None, Quality]:
    """Generate and score answers, then measure decode loss and agreement by teacher forcing.

    Without answers (answers=false) the loss is measured alone; random prompts have no quality.
    """
    config, workload, decoder = run.point.config, run.workload, decoders.strategy
    if workload is None:
        return None, Quality()
    baseline_answers, baseline_hypotheses = list[JsonObject](), None
    if config.answers and baseline:
        baseline_answers = ResultsFolder.of(config).generations(baseline.id)
        baseline_hypotheses = [answer["hypothesis"] for answer in baseline_answers]
    forced = _forced_texts(run, workload, decoder, baseline_answers)
    answers, quality = None, Quality()
    if config.answers:
        answers = generate_answers(decoder, workload, config, progress, checkpoints, forced)
        quality = score_answers(answers, workload, baseline_hypotheses, progress)
        forced.size.lower(answers.batch_size.used)  # larger batches ran out of memory
    if forced.references:
        num_truncated = sum(example.truncated_response for example in workload.encoded)
        quality = quality.replace(num_truncated_references=num_truncated)
    name = config.strategy.name
    measured = measure_by_teacher_forcing(forced, decoder, decoders.full, name, progress)
    return answers, quality.replace(**measured)


def _forced_texts(
    run: PreparedRun, workload: Workload, decoder: Decoder, baseline_answers: Sequence[JsonObject]
) -> ForcedTexts:
    """Return the texts on which teacher forcing measures a run: the references for the decode
    loss, and the baseline's answers for the agreement, each empty if that is not measured.
    """
    plan, config = run.plan, run.point.config
    names = workload.task.scoring().metrics
    # Answers that are right or wrong are judged as such, without a loss beside them.
    is_judged = config.answers and all(metrics.METRICS[name].is_binary for name in names)
    references, answers = list[list[int]](), list[list[int]]()
    if workload.examples[0].reference and not is_judged:
        references = [example.response_ids for example in workload.encoded]
    # Drafts for all layers have the same answers, and another library gives no logits.
    has_same_answers = plan.drafts and plan.keeps_all
    if not (has_same_answers or config.crosses_engines or decoder.decodes_outside_torch):
        answers = [answer["token_ids"] for answer in baseline_answers]
    pad, size = workload.pad_token_id, BatchSize(LOSS_BATCH)
    return ForcedTexts(workload.prompts, references, size, pad, answers)


def _time(run: PreparedRun, decoders: Decoders, progress: ProgressCallback) -> TimedPairs:
    """Time the schedule of a run, and the full model unless baseline=false, on the task's prompts
    or on random ones.
    """
    config, workload, speed = run.point.config, run.workload, run.point.config.speed
    model = run.loaded.model
    if run.is_baseline:  # against itself, which shows noise alone
        speed = speed.replace(seconds=NOISE_SHARE * speed.seconds)
    answer = answer_request(config, workload, model)
    request = timed_request(answer, run.plan.timed_tokens, decoders.strategy.views)
    full = decoders.full if config.baseline else None

    def make_pair(batch_size: int) -> Pair:
        if workload:
            batches = task_prompts(workload, request.length, batch_size)
        else:
            vocab_size = text_config(model).vocab_size
            batches = random_prompts(vocab_size, speed.prompt_tokens, batch_size, config.seed)
        return Pair(full, decoders.strategy, batches, request)

    return time_pairs(make_pair, config.batch_size, speed, config.strategy.name, progress)


def _make_record(
    run: PreparedRun,
    decoder: Decoder,
    timed: TimedPairs | None,
    answers: TaskAnswers | None,
    *sections: Section,
) -> Record:
    """Make the record of a measured point, with its warnings. `sections` are the settings, the
    quality and the outcome.
    """
    config, plan, workload = run.point.config, run.plan, run.workload
    pairs = timed.strategy if timed else ()
    evaluated: Sequence[BatchOutput] = ()
    if answers:
        evaluated = answers.outputs
    elif plan.exits:
        evaluated = pairs  # the only outputs with exit depths
    used = describe_schedule(plan, evaluated, pairs).replace(calibration=run.calibration)
    if config.crosses_engines:  # the cost model compares layers in one engine
        used = used.replace(predicted_speedup=None)
    num_examples = len(workload.examples) if workload else 0
    provenance = describe_provenance(config, plan, run.loaded, decoder, num_examples)
    measured: list[Section] = [used, provenance]
    if answers:
        measured.append(measure_throughput(answers.outputs, "evaluation"))
    elif timed:
        rates = measure_throughput(pairs, "timed pairs")
        measured.append(rates.replace(compile_seconds=timed.compile_seconds))  # with the warm-up
    if timed:
        measured.append(timed.timing().replace(step_bytes=bytes_per_step(plan, pairs[0])))
    record = Record.joined(*sections, *measured)
    return record.replace(warnings=run_warnings(config, plan, record))
