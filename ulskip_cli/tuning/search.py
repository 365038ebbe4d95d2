"""The steps of `ulskip tune`: time the layers, try candidates by decode loss, compare the best by
the metric, train a skip adapter, report.

Every step is stored in a `StepLog`, and every measured point is a row of the results folder, so
that an interrupted tuning continues and ends with the same choice.
"""

import json
import math
import operator
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from ulskip_cli.core.config import compose_training, preset
from ulskip_cli.core.config_schema import Config, TrainingConfig
from ulskip_cli.core.errors import NotApplicable, RunError, StorageError, UsageError
from ulskip_cli.core.files import all_printable, append_line, digest, read_jsonl
from ulskip_cli.core.options import parse
from ulskip_cli.core.progress import ProgressCallback, duration
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.core.task import AUTO
from ulskip_cli.core.validation import check_training
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.own_responses import OWN_RESPONSES
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.experiments.calibration import LOSS_BATCH, HeldOutEvaluator
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import MIN_FOR_STARS, Record, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.runner import Session, prepare_run
from ulskip_cli.experiments.statistics import (
    GATE,
    HOLDS,
    TIE,
    difference,
    primary,
    verdict,
)
from ulskip_cli.experiments.sweep.jobs import Job, Sweep, SweepObserver, make_jobs
from ulskip_cli.inference.batching import BatchSize, free_unused_memory
from ulskip_cli.inference.checkpoint import training_record
from ulskip_cli.training.run import run_training
from ulskip_cli.tuning.request import (
    Candidate,
    Chosen,
    Trial,
    TuneRequest,
    resolve_tuning,
    training_examples,
)
from ulskip_cli.tuning.result import Alternative, TuneResult, best_alternative, judge

# Shares of the budget in which the last alternative with all layers, candidate or number of layers
# ends, if it takes as long as the one before it.
LOSSLESS_SHARE, TRIAL_SHARE, BISECT_SHARE = 0.2, 0.5, 0.7
# Shares of the budget for what cannot be cut short once it has begun: the answers of so many points
# to the examples that choose, and the passes of a candidate over the calibration examples. Both
# have at least MIN_FOR_STARS examples.
CHOICE_SHARE, CHOICE_POINTS = 0.25, 4
CALIBRATION_SHARE, CALIBRATION_PASSES = 0.15, 20
# Examples that are timed before: answers, of one batch at least, and losses, of two full batches, a
# half for patches.
TIMED_ANSWERS, TIMED_LOSSES = 4, 2 * LOSS_BATCH
# The most of the budget that the final report of three points takes, unless it would have fewer
# examples than a verdict needs.
FINAL_SHARE, FINAL_POINTS = 0.4, 3
FIRST_SHARE = 0.75  # of the layers, where the search for a wanted quality begins
NEAR = 0.99  # share of the wanted speedup that a number of layers must reach by the fitted line
MIN_SECONDS = 60.0  # for a training; with fewer seconds, adapter=auto trains nothing
ANSWER_SHARE, MAX_SAMPLES = 0.3, 4  # of these seconds for own answers; of them per prompt
PROBE = {"steps": 4, "examples": 16, "samples": 1}  # the size of a training that is timed
Errors = tuple[type[Exception], ...]
REFUSALS = (UsageError, RunError)  # reasons why a model or a candidate cannot run a step
Value = TypeVar("Value")


class StepLog:
    """Stores the value of every finished step under its name, one JSON line each, with its
    seconds, so that the same command continues after an interruption.
    """

    def __init__(self, path: Path, minutes: float = 0.0) -> None:
        """Read the steps that earlier processes finished; a damaged line counts as a step that is
        missing. The tuning has taken some `minutes` before.
        """
        self.path = path
        steps = [step for step in read_jsonl(path) if {"step", "value", "seconds"} <= step.keys()]
        self._values = {step["step"]: all_printable(step["value"]) for step in steps}
        finished: float = sum(step["seconds"] for step in steps)
        self._began = time.monotonic() - finished - 60 * minutes

    def once(self, step: str, run: Callable[[], Value], refusals: Errors = ()) -> Value:
        """Return the stored value of a step, or run the step and store the JSON-ready value that it
        returns, or `refused` with the reason if one of the `refusals` says that this model or
        candidate cannot run it.
        """
        if step not in self._values:
            began = time.monotonic()
            try:
                self._values[step] = run()
            except StorageError:
                raise
            except refusals as error:
                self._values[step] = {"refused": str(error)}
            self._store(step, time.monotonic() - began)
        return cast(Value, self._values[step])

    def add(self, step: str, seconds: float) -> None:
        """Store the seconds of a step whose value is stored elsewhere, unless they are known."""
        if step not in self._values:
            self._values[step] = None
            self._store(step, seconds)

    def _store(self, step: str, seconds: float) -> None:
        line = {"step": step, "value": self._values[step], "seconds": round(seconds, 1)}
        append_line(self.path, json.dumps(line, ensure_ascii=False))

    @property
    def minutes(self) -> float:
        """The minutes that the tuning has taken, with those of the steps that earlier processes
        finished.
        """
        return (time.monotonic() - self._began) / 60


@dataclass
class Tuning:
    """Runs a request. `observe` returns the display of a sweep of jobs."""

    request: TuneRequest
    progress: ProgressCallback
    observe: Callable[[Sequence[Job]], AbstractContextManager[SweepObserver]]
    trials: list[Trial] = field(default_factory=list)
    adapter: Row | None = None  # what was trained, or `refused` with the reason
    _slowest: float = 0.0  # seconds per example of the slowest point, but for its timed pairs
    _timed: float = 0.0  # seconds of the timed pairs of a point, at most
    _began: dict[float, float] = field(default_factory=dict)  # by share, when a step last began

    def __post_init__(self) -> None:
        self.config = self.request.config
        self.folder = ResultsFolder.of(self.config)
        self._log = StepLog(self._log_path)
        self._resolver, self._session = Resolver(), Session(self.progress)
        self._loss: ReferenceLoss | None = None

    @property
    def _log_path(self) -> Path:
        return self.folder.path / "tuning" / f"{self.request.key}.jsonl"

    def run(self) -> TuneResult:
        """Run all steps that are not finished, and return the result; raise RunError if a
        measurement fails.
        """
        for reason in self.request.refused:
            self.progress.note(f"left out: {reason}")
        self.progress.note(self._outlook())
        self.fit_into_budget()
        alternatives = self.without_loss()
        chosen = self._fastest_enough() if self.config.speedup else self._good_enough()
        if self.config.adapter != "never":
            chosen = self._with_adapter(chosen)
        split, budget = self.request.split, f"budget={self.config.budget:g}"
        count = self._log.once(f"examples of the final report, {budget}", lambda: self.num_final)
        few = f" of {split.num_final} ({budget} has no time for more)" * (count < split.num_final)
        self.progress.note(
            f"final report on {count}{few} examples, after {self._log.minutes:.1f} minutes:"
            f" {duration(60 * self._final_minutes)}"
        )
        config = chosen.candidate.at(self.request.num_layers, chosen.num_kept)
        (record,) = self._measure([split.at_the_end(config, count)])
        best = best_alternative(alternatives, self.config)
        if best:
            at_the_end = split.at_the_end(best.candidate.config, count)
            best = self._alternative(Candidate(best.label, at_the_end))
        return TuneResult(
            request=self.request,
            chosen=chosen,
            record=record,
            trials=tuple(self.trials),
            training=self.adapter,
            minutes=self._log.minutes,
            alternatives=tuple(alternatives),
            best=best,
        )

    def _outlook(self) -> str:
        """Say for how long the steps may run."""
        budget, steps = self.config.budget, list[str]()
        if self.request.alternatives:
            steps.append(f"{LOSSLESS_SHARE * budget:g} for what keeps all layers")
        steps.append(f"{TRIAL_SHARE * budget:g} until the last candidate ends")
        if self.config.adapter != "never":
            steps.append("the others to train an adapter")
        return f"budget={budget:g} minutes: {', '.join(steps)}; less what the final report needs"

    def fit_into_budget(self) -> None:
        """Choose and calibrate on fewer examples if the budget has no time for all, judged by the
        times of a few.
        """
        config, split = self.config, self.request.split
        times = self._log.once("seconds of an example", self.seconds_of_an_example)
        self._free_weights()
        answer, loss = times["answer"], times["loss"]
        self._slowest = max(self._slowest, answer)
        calibration = split.choice.calibration
        wanted = split.num_choice, calibration.examples
        able = (
            int(60 * config.budget * CHOICE_SHARE / CHOICE_POINTS / answer),
            int(60 * config.budget * CALIBRATION_SHARE / CALIBRATION_PASSES / loss),
        )
        choosing, calibrating = (
            min(most, max(count, MIN_FOR_STARS)) for most, count in zip(wanted, able, strict=True)
        )
        if (choosing, calibrating) == wanted:
            return
        self.config = config.replace(
            choice_examples=choosing,
            calibration=config.calibration.replace(examples=calibrating),
        )
        self.request = resolve_tuning(self.config)
        self._log = StepLog(self._log_path, self._log.minutes)
        uses = ("choose", choosing, wanted[0]), ("calibrate", calibrating, wanted[1])
        fewer = [f"{count} instead of {most} to {use}" for use, count, most in uses if count < most]
        self.progress.note(
            f"an answer takes {answer:.1f} seconds, so there are fewer examples:"
            f" {', '.join(fewer)}; raise budget={config.budget:g} for more"
        )

    def seconds_of_an_example(self) -> dict[str, float]:
        """Time a few answers of the full model and, on more examples, a decode loss with the
        corrections of the first candidate.
        """
        config, num_layers = self.request.candidates[0].config, self.request.num_layers
        count = min(TIMED_LOSSES, self.request.split.num_choice)
        config = config.replace(limit=count, ratio=1.0)
        loaded = self._session.load(config.model, config.seed)
        workload, _ = self._session.encode(self._resolver.resolve(config))
        assert workload is not None  # random weights are refused
        answered = min(max(TIMED_ANSWERS, config.batch_size), count)
        few = replace(
            workload, examples=workload.examples[:answered], encoded=workload.encoded[:answered]
        )
        kept = range(num_layers - 1)
        try:
            evaluator = HeldOutEvaluator(config, loaded, workload, self.progress)
            evaluator.decode_loss(kept)  # encodes the prompts, for all losses of a calibration
        except UsageError:  # the model has no such patches; the candidate will be left out
            plain = config.replace(correction=preset("correction", "none"))
            evaluator = HeldOutEvaluator(plain, loaded, workload, self.progress)
            evaluator.decode_loss(kept)

        def seconds(measure: Callable[[], object]) -> float:
            began = time.monotonic()
            measure()
            return time.monotonic() - began

        answers = seconds(replace(evaluator, workload=few).output_lengths)
        losses = seconds(lambda: evaluator.decode_loss(kept))
        return {"answer": answers / answered, "loss": losses / count}

    @property
    def num_final(self) -> int:
        """The examples of the final report: all, or as many as its share of the budget, or what is
        left of the budget, has time for.
        """
        most, budget = self.request.split.num_final, self.config.budget
        minutes = min(FINAL_SHARE * budget, budget - self._log.minutes)
        seconds = 60 * minutes / FINAL_POINTS - self._timed
        able = int(seconds / self._slowest) if self._slowest else most
        return min(most, max(able, MIN_FOR_STARS))

    @property
    def _final_minutes(self) -> float:
        """The minutes that the final report takes if the winner, the full model and the best
        alternative are as slow as the slowest point so far.
        """
        return FINAL_POINTS * (self._timed + self._slowest * self.num_final) / 60

    def without_loss(self) -> list[Alternative]:
        """Measure the alternatives that keep all layers, as far as the budget has time."""
        measured, late = list[Alternative](), list[str]()
        for candidate in self.request.alternatives:
            if not self._in_time(candidate.label, LOSSLESS_SHARE):
                late.append(candidate.label)
            elif alternative := self._alternative(candidate):
                measured.append(alternative)
                self.progress.note(f"{candidate.label}: {alternative.text()}")
        if late:
            self.progress.note(
                f"no time is left for {', '.join(late)}; raise budget={self.config.budget:g}"
            )
        return measured

    def _alternative(self, candidate: Candidate) -> Alternative | None:
        """Measure an alternative and the full model, or return None if it cannot run."""
        try:
            (record,) = self._measure([candidate.config])
        except StorageError:
            raise
        except REFUSALS as error:
            self.progress.note(f"left out: {candidate.label}: {error}")
            return None
        answers, full = (
            [answer["hypothesis"] for answer in self.folder.generations(run_id)]
            for run_id in (record.id, record.baseline_id or "")
        )
        num_same = sum(map(operator.eq, answers, full))
        return Alternative(candidate, record, num_same, judge(record, self.config.quality or GATE))

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates, first the uncorrected layers for which the weights were trained."""
        trained = (training_record(self.config.model) or {}).get("strategy")

        def is_other(candidate: Candidate) -> bool:
            config = candidate.config
            return config.strategy.name != trained or config.correction.is_fitted

        return tuple(sorted(self.request.candidates, key=is_other))

    def _fastest_enough(self) -> Chosen:
        """Return the best candidate with the largest number of layers that meets the wanted
        speedup.
        """
        wanted = self.config.speedup or 1.0
        step = "predicted speedup by layers"
        speedups = self._log.once(step, self.speedups)
        return self._best(self.candidates, num_kept_for(speedups, wanted))[0]

    def speedups(self) -> dict[str, float]:
        """Return the predicted speedup at every number of layers."""
        candidate = self.request.candidates[0]
        config = candidate.config.replace(strategy=preset("strategy", "unified"))
        unified, num_layers = Candidate("unified", config), self.request.num_layers
        predicted = dict[str, float]()
        for count in range(MIN_KEPT, num_layers):
            _, plan = self._resolver.schedule(unified.at(num_layers, count), "run")
            predicted[str(count)] = plan.predicted_speedup or plan.layer_ratio
        return predicted

    def _good_enough(self) -> Chosen:
        """Return the best candidate with the smallest number of layers that keeps the wanted
        quality, by bisection; if none keeps it, return the one that keeps the most.
        """
        wanted, candidates = self.config.quality or 1.0, self.candidates
        # Fewer than `few` layers are too few, `many` are enough; `few` to `many` - 1 are untried.
        few, many = MIN_KEPT, self.request.num_layers
        kept_share: dict[int, float] = {}
        tried: dict[int, Chosen] = {}
        num_kept = max(few, min(many - 1, round(FIRST_SHARE * many)))
        while few < many and (self._in_time(f"{num_kept} layers", BISECT_SHARE) or not tried):
            # Only the finalists of this number of layers are candidates for the next.
            tried[num_kept], candidates = self._best(candidates, num_kept)
            (record,) = self._measure_answers([tried[num_kept]])
            share = kept_share[num_kept] = judge(record, wanted).share
            self.progress.note(
                f"{num_kept} layers: {share:.1%} of the full model's score, wanted {wanted:.1%}"
            )
            few, many = (few, num_kept) if share >= wanted else (num_kept + 1, many)
            num_kept = (few + many) // 2
        passing = [count for count, share in kept_share.items() if share >= wanted]
        return tried[min(passing, default=max(kept_share, key=lambda count: kept_share[count]))]

    def _best(
        self, candidates: Sequence[Candidate], num_kept: int
    ) -> tuple[Chosen, tuple[Candidate, ...]]:
        """Return the best candidate at a number of layers, and all candidates that were compared by
        the metric.
        """
        ranked: list[Chosen] = []
        for candidate in candidates:
            step = f"{candidate.label} at {num_kept} layers"
            if not self._in_time(step, TRIAL_SHARE) and ranked:
                self.progress.note(
                    f"no time is left for {step}; raise budget={self.config.budget:g}"
                )
            elif trial := self._try(step, candidate, num_kept):
                ranked.append(Chosen(trial, candidate))
                ranked.sort(key=lambda point: point.trial.loss)
                best = ranked[0].trial.candidate
                self.progress.note(f"{step}: decode loss {trial.loss:.3f} (best so far: {best})")
        if not ranked:
            raise RunError(f"no candidate works with {num_kept} layers; set other candidates=[...]")
        # Of candidates with the same layers and kind of patch, only the best is measured.
        distinct: dict[tuple[object, ...], Chosen] = {}
        for point in ranked:
            same = point.trial.kept_layers, point.candidate.config.correction.label
            distinct.setdefault(same, point)
        finalists = list(distinct.values())[: self.config.finalists]
        return self._choose(finalists), tuple(point.candidate for point in finalists)

    def _choose(self, points: Sequence[Chosen]) -> Chosen:
        """Return the best of several points by their answers; a single one is not measured."""
        self._free_weights()
        if len(points) == 1:
            return points[0]
        points = sorted(points, key=lambda point: point.trial.loss)
        return points[decide(self._measure_answers(points))]

    def _free_weights(self) -> None:
        """Free the weights before a training or a sweep loads them."""
        self._loss, self._session = None, Session(self.progress)
        free_unused_memory()

    def _measure_answers(self, points: Sequence[Chosen]) -> list[Record]:
        """Measure the answers of points to the examples that choose; finished ones are read."""
        configs = [point.candidate.at(self.request.num_layers, point.num_kept) for point in points]
        records = self._measure(
            [config.replace(speed=config.speed.replace(enabled=False)) for config in configs]
        )
        for record in records:
            judge(record, 1.0)  # without a score of the full model, the search ends here
        return records

    def _with_adapter(self, chosen: Chosen) -> Chosen:
        """Train a skip adapter for the chosen layers if the budget has time left, and return the
        better of both.
        """
        config = self.config
        steps = f"{config.adapter_steps} steps, " if config.adapter_steps else ""
        wish = f"{steps}{config.budget:g} minutes, {config.adapter}"
        step = f"adapter for {chosen.trial.candidate} at {chosen.num_kept} layers"
        size = self.adapter = self._log.once(
            f"size of the {step} in {wish}", lambda: self._training_size(chosen), REFUSALS
        )
        if "refused" not in size:
            self.adapter = self._log.once(
                f"{step}: train {size}", lambda: self._train(chosen, size), REFUSALS
            )
        if "refused" in self.adapter:
            self.progress.note(f"left out: trained adapter: {self.adapter['refused']}")
            return chosen
        candidate = Candidate(
            f"{chosen.trial.candidate} + trained adapter",
            chosen.candidate.config.replace(
                strategy=chosen.trial.strategy,
                correction=preset("correction", "adapter", {"path": [self.adapter["folder"]]}),
            ),
        )
        trial = self._try(f"{step}: decode loss after {size}", candidate, chosen.num_kept)
        if trial is None:
            return chosen
        self.progress.note(
            f"{trial.candidate}: decode loss {trial.loss:.3f}, before {chosen.trial.loss:.3f}"
        )
        return self._choose([chosen, Chosen(trial, candidate)])

    def _training_size(self, chosen: Chosen) -> dict[str, int]:
        """Return the steps, examples and own answers per example (`samples`) for which the budget
        has time; without `adapter_steps`, a short training measures the time of a step.
        """
        tuned, split = self.config, self.request.split
        config, examples = self._training_config(chosen, PROBE), training_examples(split)
        answer_seconds = self._slowest
        seconds = 60 * (tuned.budget - self._log.minutes - self._final_minutes)
        seconds -= 2 * answer_seconds * split.num_choice  # of both, to choose
        if seconds < MIN_SECONDS and tuned.adapter == AUTO:
            raise NotApplicable(
                f"expected at least {MIN_SECONDS:.0f} seconds for the training of an adapter, got "
                f"{max(0.0, seconds):.0f}; raise budget={tuned.budget:g}, or use adapter=always"
            )
        steps, seconds = tuned.adapter_steps, max(seconds, MIN_SECONDS)
        batch_size = config.train.batch_size
        answers = math.ceil(
            steps * batch_size / 2 if steps else ANSWER_SHARE * seconds / answer_seconds
        )
        count = max(1, min(len(examples), answers))
        samples = max(1, min(MAX_SAMPLES, answers // count))
        if not steps:
            shutil.rmtree(config.output, ignore_errors=True)  # an interrupted one has no times
            began = time.monotonic()
            probe = run_training(config, self.progress, examples[: min(PROBE["examples"], count)])
            took = time.monotonic() - began
            shutil.rmtree(config.output)
            left = seconds - count * samples * answer_seconds - 2 * took + probe.seconds
            most = math.ceil(config.train.epochs * count * (1 + samples) / batch_size)
            steps = max(1, min(most, int(left / max(probe.seconds / PROBE["steps"], 1e-6))))
        return {"steps": steps, "examples": count, "samples": samples}

    def _train(self, chosen: Chosen, size: dict[str, int]) -> Row:
        """Train a skip adapter, or continue an interrupted training; return its folder and
        sizes.
        """
        config = self._training_config(chosen, size)
        examples = training_examples(self.request.split)[: size["examples"]]
        record = run_training(config, self.progress, examples)
        return {**size, "folder": config.output, "responses": record.examples}

    def _training_config(self, chosen: Chosen, size: dict[str, int]) -> TrainingConfig:
        """Return a configuration that trains the patches further; raise UsageError if they cannot
        be trained.
        """
        tuned, trial, folder = chosen.candidate.config, chosen.trial, self.folder.path
        base = compose_training(["train=adapter"])
        train = base.train.replace(
            start=str(folder / "calibrations" / trial.patch) if trial.patch else None,
            own=base.train.own.replace(
                samples=size["samples"],
                file=str(folder / "calibrations" / OWN_RESPONSES),
                max_new_tokens=tuned.decoding.max_new_tokens,
            ),
            max_steps=size["steps"],
            max_length=None,
            save_every=max(1, size["steps"] // 5),
        )
        # Another budget has another size.
        name = "-".join(map(str, [digest(trial.plain()), *size.values()]))
        config = base.replace(
            strategy=trial.strategy,
            correction=base.correction.replace(kind=tuned.correction.patch_kind(tuned.model).name),
            model=tuned.model,
            task=self.request.split.choice.task,
            train=train,
            output=str(folder / "tuning" / f"{self.request.key}-adapter" / name),
            prompt_layers=tuned.prompt_layers,
            seed=tuned.seed,
        )
        check_training(config)
        return config

    def _try(self, step: str, candidate: Candidate, num_kept: int) -> Trial | None:
        """Return the trial of a candidate, or None if it does not apply."""
        outcome = self._log.once(
            step, lambda: self.measure_loss(candidate, num_kept).plain(), (UsageError,)
        )
        if "refused" in outcome:
            self.progress.note(f"left out: {step}: {outcome['refused']}")
            return None
        self.trials.append(parse(Trial, outcome, file=self._log.path))
        return self.trials[-1]

    def measure_loss(self, candidate: Candidate, num_kept: int) -> Trial:
        """Calibrate a candidate, fit its patches, and measure its decode loss; the weights and the
        encoded prompts are kept for the next trial.
        """
        config = candidate.at(self.request.num_layers, num_kept)
        run = prepare_run(self._resolver.resolve(config), self._session)
        loaded, workload, correction = run.loaded, run.workload, run.correction
        decoder = Decoder(loaded.model, run.plan, run.adapter, config.engine)
        assert workload is not None  # random weights are refused
        if self._loss is None:
            self._loss = ReferenceLoss(
                workload.encoded, BatchSize(LOSS_BATCH), workload.pad_token_id
            )
        report = self.progress.phase(f"{candidate.label}: decode loss", len(workload.encoded))
        loss = self._loss.of(decoder, report)
        return Trial(
            candidate=candidate.label,
            kept_layers=run.plan.kept_layers,
            loss=loss,
            patch=correction.id if correction else None,
            adapter=correction.path if correction else None,
        )

    def _in_time(self, step: str, share: float) -> bool:
        """Decide once whether a step ends within a share of the budget if it takes as long as what
        began last with this share; a resumed tuning with this budget decides in the same way.
        """
        now = self._log.minutes
        end = 2 * now - self._began.get(share, now)
        latest = share * (self.config.budget - self._final_minutes)
        name = f"began {step} in {self.config.budget:g} minutes"
        began, in_time = self._log.once(name, lambda: [now, end <= latest])
        if in_time:
            self._began[share] = began
        return bool(in_time)

    def _measure(self, configs: Sequence[Config]) -> list[Record]:
        """Run points and their baselines as a sweep, and return the records of the points with
        their folder.
        """
        jobs, began = make_jobs(configs, self._resolver), time.monotonic()
        with self.observe(jobs) as observer:
            outcome = Sweep(jobs, observer).run()
        outcome.check()
        ids = [self._resolver.resolve(config).run_id for config in configs]
        self._log.add(f"points {' '.join(ids)}", time.monotonic() - began)
        records = [outcome.records[run_id].replace(folder=str(self.folder.path)) for run_id in ids]
        for record in records:
            timed = record.pairs.seconds if record.pairs else 0.0
            answering = (record.wall_seconds or 0.0) - timed
            self._timed = max(self._timed, timed)
            self._slowest = max(self._slowest, answering / (record.num_examples or 1))
        return records


def num_kept_for(speedups: Mapping[str, float], wanted: float) -> int:
    """Return the largest number of layers whose speedup is near the wanted one, or the smallest
    number if none is.

    >>> num_kept_for({"2": 3.0, "3": 2.0, "4": 1.5}, 2.01), num_kept_for({"2": 3.0, "3": 2.0}, 9)
    (3, 2)
    """
    enough = [int(count) for count, speedup in speedups.items() if speedup >= NEAR * wanted]
    return max(enough, default=min(map(int, speedups)))


def decide(records: Sequence[Record]) -> int:
    """Return the index of the best record; the records are sorted by decode loss.

    A later record is better if the interval of the metric's paired difference is above zero. If the
    interval includes zero, the agreement with the full model decides, because it varies less
    between examples; without agreement, the loss decides.
    """
    best = 0
    if metric := primary(records):
        for i in range(1, len(records)):
            better = verdict(difference(records[i], records[best], metric))
            closer = (records[i].agreement or 0.0) > (records[best].agreement or 0.0)
            if better == HOLDS or (better == TIE and closer):
                best = i
    return best
