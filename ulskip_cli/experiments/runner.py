"""Run one point from its configuration to its row: load, calibrate, decode, score, time, record,
save.

`run_jobs` calls `run_point` for each job of a run, a sweep, a benchmark or a tuning. A benchmark is
a run without a task, which times random prompts.
"""

import time
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from ulskip_cli.core import environment
from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import ModelConfig
from ulskip_cli.core.engines import Engine
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.files import Table
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
from ulskip_cli.experiments.point import Point
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
    """The tokenizers, weights and full model's decoder that all points of a process share. Each is
    loaded once; only the last model stays in memory.
    """

    progress: ProgressCallback = field(default_factory=ProgressCallback)
    _tokenizers: dict[tuple[str, str], PreTrainedTokenizerBase] = field(default_factory=dict)
    _model: tuple[ModelConfig, LoadedModel] | None = None
    _full: tuple[Engine, Decoder] | None = None

    def encode(self, point: Point) -> tuple[Workload | None, Workload | None]:
        """Encode a point's examples and held-out examples without weights; raise UsageError if the
        context is too short. None stands for random prompts, or for no held-out examples.
        """
        if point.data is None:
            return None, None
        tokenizer = self.tokenizer(point.folder.model)
        workload, held_out = encode_examples(point.data, point, tokenizer), None
        if point.held_out:
            held_out = encode_examples(point.held_out, point, tokenizer)
        return workload, held_out

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
        if self._model is None or self._model[0] != config:
            self._model = self._full = None  # a decoder would keep the weights that are freed here
            free_unused_memory()
            self.progress.phase(f"load {config.label}")
            loaded = load(config, self.progress)
            if loaded.model.device.type == "cpu":
                compiling = "compile the CPU kernels, once per machine"
                kernels.load_kernels(lambda: self.progress.phase(compiling))
            self._model = config, loaded
        loaded = self._model[1]
        if loaded.folder.fingerprint != point.folder.fingerprint:
            raise RunError(
                f"the weights of {config.path} changed since the run was prepared; repeat the run"
            )
        return loaded

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
    """A point with its weights loaded, its examples encoded and its schedule decided."""

    point: Point
    loaded: LoadedModel
    workload: Workload | None  # None: random prompts
    plan: Plan
    calibration: Table | None  # what a row stores of a calibration
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
    full, decoder = models.decoders(run)
    # values on which answers depend and that are not a part of the id
    origin = {
        **environment.origin(str(run.loaded.model.device)),
        "linear_backend": decoder.backend(decoder.engine(config.decoding)[0]).name,
        "answered_by": key(run.calibration, run.correction, run.workload and run.workload.prompts),
    }
    checkpoints = BatchCheckpoints(folder.checkpoint_path(point.id), origin, run.started_at)
    try:
        answers, quality = _evaluate(run, full, decoder, baseline, checkpoints, models.progress)
    except InvalidLogitsError:
        checkpoints.remove()
        raise
    timed = _time(run, full, decoder, models.progress) if config.speed.enabled else None
    models.progress.phase("write")
    if answers:  # with their row, because an earlier row keeps its answers until then
        folder.save_generations(point.id, answers.generations)
    settings = point.settings.replace(
        baseline_id=baseline and baseline.id,
        correction=run.correction,
        chat=run.workload.formatter.template.chat if run.workload else None,
    )
    outcome = Outcome(wall_seconds=checkpoints.elapsed_seconds)
    record = _make_record(run, decoder, timed, answers, settings, quality, outcome)
    folder.save(record)
    checkpoints.remove()
    return record


def prepare_run(point: Point, models: Models) -> PreparedRun:
    """Encode and load, and decide the schedule and the corrections of a point by calibration."""
    started_at, config = time.monotonic(), point.config
    workload, held_out = models.encode(point)
    loaded = models.load(point)
    # Before weights are downloaded or drawn, the point has no sizes of them.
    plan = replace(point.plan, sizes=step_sizes(config, loaded.metadata, point.plan.needs))
    evaluator = held_out and HeldOutEvaluator(config, loaded, held_out, models.progress)
    calibration = None
    if evaluator and not config.strategy.is_calibrated:
        plan, calibration = evaluator.calibrate_strategy()
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


def _evaluate(
    run: PreparedRun,
    full: Decoder,
    decoder: Decoder,
    baseline: Record | None,
    checkpoints: BatchCheckpoints,
    progress: ProgressCallback,
) -> tuple[TaskAnswers | None, Quality]:
    """Generate and score answers, and measure the decode loss of the references and the agreement
    with the baseline's answers. With answers=false, measure the loss alone; random prompts have
    neither.
    """
    config, workload = run.point.config, run.workload
    if workload is None:
        return None, Quality()
    stored = list[Table]()
    if config.answers and baseline:
        stored = ResultsFolder.of(config).generations(baseline.id)
    texts = ForcedTexts(
        workload.prompts,
        [example.response_ids for example in workload.encoded] if _has_loss(run) else [],
        BatchSize(LOSS_BATCH),
        workload.pad_token_id,
        [row["token_ids"] for row in stored] if _compares_tokens(run, decoder) else [],
    )
    answers, quality = None, Quality()
    if config.answers:
        hypotheses = [row["hypothesis"] for row in stored] if baseline else None
        answers = generate_answers(decoder, workload, config, progress, checkpoints, texts)
        quality = score_answers(answers, workload, hypotheses, progress)
        texts.size.lower(answers.batch_size.used)
    if texts.references:
        truncated = sum(example.truncated_response for example in workload.encoded)
        quality = quality.replace(num_truncated_references=truncated)
    values = measure_by_teacher_forcing(texts, decoder, full, config.strategy.name, progress)
    return answers, quality.replace(**values)


def _has_loss(run: PreparedRun) -> bool:
    """Return True if the decode loss of the references is measured. Tasks whose answers are right
    or wrong have no loss beside their answers.
    """
    assert run.workload
    names = run.workload.task.scoring().metrics
    is_judged = all(metrics.METRICS[name].is_binary for name in names)
    has_references = bool(run.workload.examples[0].reference)
    return has_references and not (run.point.config.answers and is_judged)


def _compares_tokens(run: PreparedRun, decoder: Decoder) -> bool:
    """Return True if the agreement with the baseline's answers is measured: not with drafts for all
    layers, which have the same answers, not of two engines, and not in a library, which has no
    logits.
    """
    has_same_answers = run.plan.drafts and run.plan.keeps_all
    return not (has_same_answers or run.point.config.crosses_engines or decoder.is_runtime)


def make_pair(run: PreparedRun, full: Decoder, decoder: Decoder, batch_size: int) -> Pair:
    """Return the full model (none with baseline=false) and the schedule of a run as the two sides
    of a timed pair, on the task's prompts or on random ones.
    """
    config, workload, model = run.point.config, run.workload, run.loaded.model
    answer = answer_request(config, workload, model)
    request = timed_request(answer, run.plan.timed_tokens, decoder.views)
    if workload:
        prompts = task_prompts(workload, request.length, batch_size)
    else:
        vocab_size, length = text_config(model).vocab_size, config.speed.prompt_tokens
        prompts = random_prompts(vocab_size, length, batch_size, config.seed)
    return Pair(full if config.baseline else None, decoder, prompts, request)


def _time(
    run: PreparedRun, full: Decoder, decoder: Decoder, progress: ProgressCallback
) -> TimedPairs:
    """Time the schedule of a run, and the full model if it has a baseline."""
    config, speed = run.point.config, run.point.config.speed
    if run.is_baseline:  # against itself, which shows noise alone
        speed = speed.replace(seconds=NOISE_SHARE * speed.seconds)
    pair_of_size = partial(make_pair, run, full, decoder)
    return time_pairs(pair_of_size, config.batch_size, speed, config.strategy.name, progress)


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
    outputs, source = (answers.outputs, "evaluation") if answers else (pairs, "timed pairs")
    described = describe_schedule(plan, outputs if answers or plan.exits else [], pairs)
    described = described.replace(calibration=run.calibration)
    if config.crosses_engines:  # the cost model compares layers in one engine
        described = described.replace(predicted_speedup=None)
    num_examples = len(workload.examples) if workload else 0
    provenance = describe_provenance(config, plan, run.loaded, decoder, num_examples)
    measured = list[Section]()
    if outputs:
        throughput = measure_throughput(outputs, source)
        if timed and not answers:
            throughput = throughput.replace(compile_seconds=timed.compile_seconds)
        measured.append(throughput)
    if timed:
        measured.append(timed.timing().replace(step_bytes=bytes_per_step(plan, pairs[0])))
    record = Record.joined(*sections, described, provenance, *measured)
    return record.replace(warnings=run_warnings(config, plan, record))
