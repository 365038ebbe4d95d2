"""The steps of `ulskip tune`: time the layers, try candidates by decode loss, compare the best by
the metric, train, report.

Every step is stored in a `StepLog`, and every measured point is a row of the results folder, so
that an interrupted tuning continues and ends with the same choice.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ulskip_cli.core import environment
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, RunError, StorageError, UsageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.runner import Session
from ulskip_cli.experiments.statistics import HOLDS, Scorer, primary
from ulskip_cli.experiments.sweep.jobs import Job, make_jobs
from ulskip_cli.experiments.sweep.run import SweepObserver, SweepOptions, run_sweep
from ulskip_cli.tuning.adapter import adapted, train_adapter, training_size
from ulskip_cli.tuning.request import Candidate, TuneRequest
from ulskip_cli.tuning.result import TuneResult, share_of
from ulskip_cli.tuning.step_log import StepLog
from ulskip_cli.tuning.trials import Chosen, Trial, Trials, num_kept_for

TRIAL_SHARE, BISECT_SHARE = (
    0.5,
    0.7,
)  # of the budget, after which no further candidate or number of layers is tried
FIRST_SHARE = 0.75  # of the layers, where the search for a wanted quality begins


@dataclass
class Tuning:
    """Runs a request. `observe` returns the display of a sweep of jobs."""

    request: TuneRequest
    progress: ProgressCallback
    observe: Callable[[Sequence[Job]], AbstractContextManager[SweepObserver]]
    trials: list[Trial] = field(default_factory=list)
    adapter: dict[str, Any] | None = None  # what was trained, or `refused` with the reason

    def __post_init__(self) -> None:
        self.folder = ResultsFolder.of(self.request.config)
        self._log = StepLog(self.folder.path / "tuning" / f"{self.request.key}.jsonl")
        self._runner = Trials(Session(self.progress), self.request.num_layers)

    def run(self) -> TuneResult:
        """Run all steps that are not finished, and return the result; raise RunError if a
        measurement fails.
        """
        for reason in self.request.refused:
            self.progress.note(f"left out: {reason}")
        chosen = self._fastest_enough() if self.request.config.speedup else self._good_enough()
        chosen = chosen if self.request.config.adapter == "never" else self._with_adapter(chosen)
        (record,) = self._measure(
            [self.request.at_the_end(self._config(chosen.candidate, chosen.num_kept))]
        )
        return TuneResult(
            self.request, chosen, record, tuple(self.trials), self.adapter, self._log.minutes
        )

    def _fastest_enough(self) -> Chosen:
        """Return the best candidate with the largest number of layers that meets the wanted
        speedup.
        """
        wanted, candidates = self.request.config.speedup or 1.0, self.request.candidates
        here = environment.machine()
        step = (
            f"speedup by layers on {here['processor']}, {here['accelerator']}, {here['threads']}"
            " threads"
        )
        speedups = self._log.once(step, lambda: self._runner.speedups(candidates[0].config, wanted))
        return self._best(candidates, num_kept_for(speedups, wanted))[0]

    def _good_enough(self) -> Chosen:
        """Return the best candidate with the smallest number of layers that keeps the wanted
        quality, by bisection.
        """
        wanted, candidates = self.request.config.quality or 1.0, self.request.candidates
        few, many = (
            MIN_KEPT,
            self.request.num_layers,
        )  # the answer is above `few` - 1 and, if anything passes, below `many`
        tried: dict[int, Chosen] = {}
        num_kept = max(few, min(many - 1, round(FIRST_SHARE * many)))
        while few < many:
            if tried and not self._in_time(f"{num_kept} layers", BISECT_SHARE):
                break
            tried[num_kept], candidates = self._best(candidates, num_kept)
            share = share_of(tried[num_kept].record)
            self.progress.note(
                f"{num_kept} layers: {share:.1%} of the full model's score, wanted {wanted:.1%}"
            )
            few, many = (few, num_kept) if share >= wanted else (num_kept + 1, many)
            num_kept = (few + many) // 2
        passing = [count for count, chosen in tried.items() if share_of(chosen.record) >= wanted]
        return tried[
            min(passing) if passing else max(tried, key=lambda count: share_of(tried[count].record))
        ]

    def _best(
        self, candidates: Sequence[Candidate], num_kept: int
    ) -> tuple[Chosen, tuple[Candidate, ...]]:
        """Return the best candidate at a number of layers, and the candidates that were compared by
        the metric.
        """
        ranked: list[tuple[Trial, Candidate]] = []
        for candidate in candidates:
            step = f"{candidate.label} at {num_kept} layers"
            if ranked and not self._in_time(step, TRIAL_SHARE):
                self.progress.note(
                    f"left out for time: {step}; raise budget={self.request.config.budget:g}"
                )
                continue
            outcome = self._log.once(step, lambda tried=candidate: self._try(tried, num_kept))  # type: ignore[misc]
            if "refused" in outcome:
                self.progress.note(f"left out: {step}: {outcome['refused']}")
                continue
            trial = Trial.from_step(outcome, self._log.path)
            ranked.append((trial, candidate))
            self.trials.append(trial)
            best = min(ranked, key=lambda pair: pair[0].loss)[0]
            word = (
                "the best so far"
                if best is trial
                else f"best so far: {best.candidate}, {best.loss:.3f}"
            )
            self.progress.note(f"{step}: decode loss {trial.loss:.3f} ({word})")
        if not ranked:
            raise RunError(f"no candidate runs with {num_kept} layers; set other candidates=[...]")
        ranked = _distinct(sorted(ranked, key=lambda pair: pair[0].loss))[
            : self.request.config.finalists
        ]
        self._runner.release()
        records = self._measure(
            [_quality_only(self._config(candidate, num_kept)) for _, candidate in ranked]
        )
        at = decide(records)
        return Chosen(*ranked[at], records[at]), tuple(candidate for _, candidate in ranked)

    def _with_adapter(self, chosen: Chosen) -> Chosen:
        """Train a skip adapter for the chosen layers if the budget has time left, and return the
        better of both.
        """
        request, config = self.request, self.request.config
        wish = (
            f"{config.adapter_steps} steps"
            if config.adapter_steps
            else f"{config.budget:g} minutes, {config.adapter}"
        )
        step = f"adapter for {chosen.trial.candidate} at {chosen.num_kept} layers"
        size = self._log.once(
            f"size of the {step} in {wish}",
            lambda: _unless_refused(
                lambda: training_size(request, chosen, self._log.minutes, self.progress)
            ),
        )
        self.adapter = size
        if "refused" not in size:
            self.adapter = self._log.once(
                f"{step}: train {size}",
                lambda: _unless_refused(
                    lambda: train_adapter(request, chosen, size, self.progress)
                ),
            )
        if "refused" in self.adapter:
            self.progress.note(f"left out: trained adapter: {self.adapter['refused']}")
            return chosen
        candidate = adapted(chosen, self.adapter["folder"])
        outcome = self._log.once(
            f"{step}: decode loss after {size}",
            lambda: self._runner.run(candidate, chosen.num_kept).as_step(),
        )
        self._runner.release()
        trial = Trial.from_step(outcome, self._log.path)
        self.trials.append(trial)
        self.progress.note(
            f"{trial.candidate}: decode loss {trial.loss:.3f}, before {chosen.trial.loss:.3f}"
        )
        (record,) = self._measure([_quality_only(self._config(candidate, chosen.num_kept))])
        both = sorted(
            [chosen, Chosen(trial, candidate, record)], key=lambda choice: choice.trial.loss
        )
        return both[decide([choice.record for choice in both])]

    def _try(self, candidate: Candidate, num_kept: int) -> dict[str, Any]:
        try:
            return self._runner.run(candidate, num_kept).as_step()
        except NotApplicable as error:
            return {"refused": str(error)}

    def _in_time(self, step: str, share: float) -> bool:
        """Decide once whether the budget has time for a step; a resumed tuning with this budget
        decides in the same way.
        """
        budget = self.request.config.budget
        return bool(
            self._log.once(
                f"time for {step} in {budget:g} minutes",
                lambda: self._log.minutes <= share * budget,
            )
        )

    def _config(self, candidate: Candidate, num_kept: int) -> Config:
        return candidate.at(self.request.num_layers, num_kept)

    def _measure(self, configs: Sequence[Config]) -> list[Record]:
        """Run points and their baselines as a sweep, and return the records of the points with
        their folder.
        """
        resolver = Resolver()
        jobs = make_jobs(configs, resolver)
        with self.observe(jobs) as observer:
            outcome = run_sweep(jobs, SweepOptions(), observer)
        outcome.check()
        ids = [resolver.resolve(config).run_id for config in configs]
        return [outcome.records[run_id].replace(folder=str(self.folder.path)) for run_id in ids]


def _unless_refused(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the value of a step, or `refused` with the reason why this model or candidate cannot
    have an adapter.
    """
    try:
        return run()
    except StorageError:
        raise
    except (UsageError, RunError) as error:
        return {"refused": str(error)}


def _quality_only(config: Config) -> Config:
    return config.replace(speed=config.speed.replace(enabled=False))


def decide(records: Sequence[Record]) -> int:
    """Return the index of the best record; they are in the order of their decode loss.

    A later one is better only if the interval of the metric's paired difference says so; otherwise
    the loss decides, which varies less between examples.
    """
    best, metric, scorer = 0, primary(records), Scorer()
    for i in range(1, len(records) if metric else 0):
        assert metric is not None
        if scorer.difference(records[i], records[best], metric).verdict() == HOLDS:
            best = i
    return best


def _distinct(ranked: Sequence[tuple[Trial, Candidate]]) -> list[tuple[Trial, Candidate]]:
    """Leave out candidates that chose the layers and the kind of patch of a better one."""
    distinct: dict[tuple[object, ...], tuple[Trial, Candidate]] = {}
    for trial, candidate in ranked:
        distinct.setdefault(
            (trial.kept_layers, candidate.config.correction.label), (trial, candidate)
        )
    return list(distinct.values())
