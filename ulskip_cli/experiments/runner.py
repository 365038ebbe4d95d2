"""One run: config -> model + task + strategy -> generation -> metrics -> results."""

import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from ulskip_cli.core import environment
from ulskip_cli.core.config import baseline_config, instantiate, recorded_config
from ulskip_cli.core.config_schema import Config, ModelConfig
from ulskip_cli.core.model_metadata import read_metadata
from ulskip_cli.core.progress import NullProgress, ProgressCallback
from ulskip_cli.experiments.batch_checkpoints import BatchCheckpoints
from ulskip_cli.experiments.calibration import calibrate_strategy
from ulskip_cli.experiments.evaluate import Evaluation, adjustments, evaluate
from ulskip_cli.experiments.held_out import held_out_task
from ulskip_cli.experiments.latency import (
    LINE_ROUNDS,
    MEET_PAIRS,
    MEET_ROUNDS,
    WARM_UP,
    LatencyTargetFit,
    fit_step_latency,
    make_pair_timer,
    solve_depth_for_speedup,
)
from ulskip_cli.experiments.record import asked_row
from ulskip_cli.experiments.results import DONE, ResultsFolder, Row, point_id
from ulskip_cli.experiments.speed import measure_speed
from ulskip_cli.experiments.workload import Workload, prepare, timed_prompts
from ulskip_cli.inference.decoder import Decoder
from ulskip_cli.inference.loading import LoadedModel, load, load_tokenizer
from ulskip_cli.inference.packed_linear import choose_linear_backend
from ulskip_cli.strategies import schedule
from ulskip_cli.strategies.cost import LatencyFit
from ulskip_cli.strategies.plan import Plan, is_trained_for, make_plan
from ulskip_cli.tasks import Task


@dataclass
class Session:
    """What runs in one process share: weights are loaded once."""

    progress: ProgressCallback = field(default_factory=NullProgress)
    _models: dict[str, LoadedModel] = field(default_factory=dict)
    _latencies: dict[str, LatencyFit] = field(default_factory=dict)

    def model(self, config: ModelConfig, seed: int) -> LoadedModel:
        """The loaded model, from memory where it is the same as before."""
        key = f"{config} {seed if config.source == 'random' else ''}"
        if key not in self._models:
            self._models.clear()  # one at a time: two may not fit
            self.progress.phase(f"load {config.name}", 1)
            self._models[key] = load(config, seed)
            choose_linear_backend(
                self._models[key].model, lambda: self.progress.phase("compile a kernel, once on this machine", 0)
            )
        return self._models[key]

    def depth(self, config: Config, loaded: LoadedModel, work: Workload) -> LatencyTargetFit | None:
        """How many layers meet a target by the clock, at a batch size; None where the clock is not asked.

        The line to start from is timed once for every model, decoding and shape of the timed batches.
        """
        if config.ratio_basis != "latency" or not instantiate(config.strategy, "strategy").follows_ratio:
            return None
        prompts = timed_prompts(work, config.batch_size, WARM_UP + MEET_PAIRS, loaded.model, config)
        shapes = [tuple(ids.shape) for ids, _ in prompts]  # [batch, prompt_len]
        key = f"{config.model} {config.decoding} {shapes} {choose_linear_backend(loaded.model).name}"
        if key not in self._latencies:
            told = self.progress.phase("calibrate", WARM_UP + LINE_ROUNDS)
            num_layers = loaded.facts.num_layers
            self._latencies[key] = fit_step_latency(loaded.model, num_layers, prompts, config.decoding, work.pad, told)
        fit = self._latencies[key]
        plan_of = partial(make_plan, config, loaded.facts)
        measured = make_pair_timer(loaded.model, plan_of, prompts, config.decoding, config.speed, work.pad)
        return solve_depth_for_speedup(fit, config.ratio, measured, self.progress.phase(f"meet {config.ratio:g}x", MEET_ROUNDS))


def run_point(config: Config, session: Session, full_row: Row | None = None) -> list[Row]:
    """Run one point, and its full baseline before it if there is no finished one.

    Args:
        config: of the point.
        session: what points share.
        full_row: of a baseline that counts wherever it was measured; None: one that was measured here.

    Returns:
        The rows of this point and its baseline, the point's own last.

    Raises:
        UsageError: before any weight is loaded, where the request cannot be served.
    """
    began = time.monotonic()
    session.progress.phase("encode", 0)
    task: Task = instantiate(config.task, "task")
    examples = task.examples()[: config.limit]
    folder = ResultsFolder.of(config)
    tokenizer, context = load_tokenizer(config.model), read_metadata(config.model).context
    work = prepare(tokenizer, context, task, examples, config)
    held_out = held_out_task(config)
    held_out_work = prepare(tokenizer, context, *held_out, config) if held_out and tokenizer else None
    loaded = session.model(config.model, config.seed)
    ready, calibration = calibrate_strategy(config, loaded, held_out_work, session.progress)
    latency = session.depth(ready, loaded, work)
    plan = make_plan(ready, loaded.facts, latency.depth if latency else None)
    told = ScheduleProvenance(latency, calibration)
    baseline = baseline_config(config)
    if plan.keeps_all or not config.baseline:
        return [_measure_point(config, plan, loaded, work, folder, session.progress, began, told=told)]
    full_id = point_id(baseline, examples)
    full_row = full_row or folder.row(full_id, _measured_here)
    if full_row is None:
        full_plan = make_plan(baseline, loaded.facts)
        full_row = _measure_point(baseline, full_plan, loaded, work, folder, session.progress, began)
        began = time.monotonic()
    return [full_row, _measure_point(config, plan, loaded, work, folder, session.progress, began, full_id, told)]


@dataclass(frozen=True)
class ScheduleProvenance:
    """How a schedule was found, for the row.

    Attributes:
        latency: the timing, where the clock was asked.
        calibration: on held-out examples, where the strategy needs one.
    """

    latency: LatencyTargetFit | None = None
    calibration: Row | None = None

    def row(self) -> Row:
        """Its keys."""
        return {"latency_fit": self.latency and self.latency.told(), "calibration": self.calibration}


def _measured_here(row: Row) -> bool:
    """True for a row of a machine like this one: times of another are not this one's."""
    return environment.is_like_here(row, ("threads",))


def _measure_point(
    config: Config,
    plan: Plan,
    loaded: LoadedModel,
    work: Workload,
    folder: ResultsFolder,
    progress: ProgressCallback,
    began: float,
    full_id: str | None = None,
    told: "ScheduleProvenance" = ScheduleProvenance(),
) -> Row:
    """Evaluate, measure and save one point."""
    torch.manual_seed(config.seed)
    decoder = Decoder(loaded.model, plan, loaded.tokenizer)
    full_hypotheses = [row["hypothesis"] for row in folder.generations(full_id)] if full_id else None
    point = point_id(config, work.examples)
    backend = decoder.linear_backend(config.decoding)
    origin = {**environment.origin(str(loaded.model.device)), "linear_backend": backend.name}
    batches = BatchCheckpoints(folder.partial_path(point), origin, began)
    full = decoder if plan.keeps_all else Decoder(loaded.model, make_plan(baseline_config(config), loaded.facts))
    judge = full if config.decoding.draft_tokens else decoder
    keep = partial(folder.keep_generations, point)
    evaluation = evaluate(decoder, work, config, full_hypotheses, progress, keep, judge, batches)
    speed: dict[str, Any] = {}
    if config.speed.enabled:
        timed = replace(config, speed=replace(config.speed, new_tokens=plan.timed_tokens))
        speed = measure_speed(full if config.baseline else None, decoder, work, timed, progress)
    engine, reason = decoder.engine(config.decoding)
    progress.phase("write", 0)
    row = {
        **identity_row(config, plan, work, point, full_id),
        "engine": engine,
        "engine_reason": reason,
        "linear_backend": backend.name,
        "linear_backend_reason": backend.reason,
        **told.row(),
        **_depth_of_answers(plan, evaluation),
        **evaluation.row,
        **speed,
        **provenance_row(config, plan, loaded, len(evaluation.generations)),
    }
    if plan.exits and row.get("evaluated_mean_kept_layers"):
        row["layer_ratio"] = plan.num_layers / row["evaluated_mean_kept_layers"]  # what ran, not what was aimed at
    if row["trained_for_these_layers"] is False and not plan.keeps_all:
        kept = f"{plan.strategy} with {plan.target_kept if plan.exits else plan.num_kept} of {plan.num_layers} layers"
        row["warnings"].append(f"{kept}: the weights were trained for others")
    row["warnings"] += adjustments(row)
    row["point_seconds"] = batches.elapsed_seconds
    folder.save(config, row, evaluation.generations)
    batches.remove()
    return row


def _depth_of_answers(plan: Plan, evaluation: Evaluation) -> Row:
    """The layers that ran in the answers' decode steps, where that depends on their lengths."""
    if not plan.later_stages or not evaluation.generations:
        return {}
    lengths = [len(one["token_ids"]) for one in evaluation.generations]
    return {"evaluated_mean_kept_layers": schedule.mean_kept(plan.stages, lengths)}


def identity_row(config: Config, plan: Plan, work: Workload, point: str, full_id: str | None) -> Row:
    """Return the row keys that say what was asked for and which schedule ran."""
    return {
        **asked_row(config),
        "status": DONE,
        "id": point,
        "baseline_id": full_id,
        "task": work.task and config.task["name"],
        "dataset": work.task and work.task.data,
        "pair": work.task and config.task.get("pair"),
        "chat": work.chat,
        "prompt_layers": plan.prompt_layers,
        "layer_ratio": plan.layer_ratio,
        "predicted_speedup": plan.predicted_speedup,
        "measured_speedup": None,
        "num_layers": plan.num_layers,
        "kept_layers": list(plan.kept_layers),
        "later_stages": [asdict(stage) for stage in plan.later_stages],
        "target_kept_layers": plan.target_kept,
        "mean_kept_layers": plan.mean_kept(plan.timed_tokens - 1),
        "warnings": list(plan.warnings),
    }


def provenance_row(config: Config, plan: Plan, loaded: LoadedModel, num_examples: int) -> Row:
    """What the result depends on."""
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "quantization": loaded.notes["quantization"],
        "training": loaded.notes["training"],
        "trained_for": loaded.notes["trained_for"],
        "trained_for_these_layers": is_trained_for(loaded.notes["trained_for"], plan),
        "num_examples": num_examples,
        "environment": {**environment.code(), **environment.machine(str(loaded.model.device))},
        "config": recorded_config(config),
    }
