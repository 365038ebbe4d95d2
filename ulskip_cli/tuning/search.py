"""The steps of `ulskip tune`: time the layers, try candidates by decode loss, compare the best by
the metric, train, report.

Every step is stored in a `StepLog`, and every measured point is a row of the results folder, so
that an interrupted tuning continues and ends with the same choice.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from ulskip_cli.core import environment
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, RunError, StorageError, UsageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import Record, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.runner import Session
from ulskip_cli.experiments.statistics import HOLDS, TIE, Scorer, primary
from ulskip_cli.experiments.sweep.jobs import Job, make_jobs
from ulskip_cli.experiments.sweep.run import SweepObserver, SweepOptions, run_sweep
from ulskip_cli.tuning.adapter import adapted, train_adapter, training_size
from ulskip_cli.tuning.request import Candidate, TuneRequest
from ulskip_cli.tuning.result import TuneResult, judge
from ulskip_cli.tuning.trials import Chosen, StepLog, Trial, Trials, num_kept_for

# Shares of the budget after which no further candidate or number of layers is tried.
TRIAL_SHARE, BISECT_SHARE = 0.5, 0.7
Errors = tuple[type[Exception], ...]
FIRST_SHARE = 0.75  # of the layers, where the search for a wanted quality begins


@dataclass
class Tuning:
    """Runs a request. `observe` returns the display of a sweep of jobs."""

    request: TuneRequest
    progress: ProgressCallback
    observe: Callable[[Sequence[Job]], AbstractContextManager[SweepObserver]]
    trials: list[Trial] = field(default_factory=list)
    adapter: Row | None = None  # what was trained, or `refused` with the reason

    def __post_init__(self) -> None:
        self.config = self.request.config
        self.folder = ResultsFolder.of(self.config)
        self._log = StepLog(self.folder.path / "tuning" / f"{self.request.key}.jsonl")
        self._runner = Trials(Session(self.progress), self.request.num_layers)

    def run(self) -> TuneResult:
        """Run all steps that are not finished, and return the result; raise RunError if a
        measurement fails.
        """
        for reason in self.request.refused:
            self.progress.note(f"left out: {reason}")
        chosen = self._fastest_enough() if self.config.speedup else self._good_enough()
        if self.config.adapter != "never":
            chosen = self._with_adapter(chosen)
        config = chosen.candidate.at(self.request.num_layers, chosen.num_kept)
        (record,) = self._measure([self.request.at_the_end(config)])
        minutes = self._log.minutes
        return TuneResult(self.request, chosen, record, tuple(self.trials), self.adapter, minutes)

    def _fastest_enough(self) -> Chosen:
        """Return the best candidate with the largest number of layers that meets the wanted
        speedup.
        """
        wanted, candidates = self.config.speedup or 1.0, self.request.candidates
        here = environment.machine()
        machine = f"{here['processor']}, {here['accelerator']}, {here['threads']} threads"
        speedups = self._log.once(
            f"speedup by layers on {machine}",
            lambda: self._runner.speedups(candidates[0].config, wanted),
        )
        return self._best(candidates, num_kept_for(speedups, wanted))[0]

    def _good_enough(self) -> Chosen:
        """Return the best candidate with the smallest number of layers that keeps the wanted
        quality, by bisection.
        """
        wanted, candidates = self.config.quality or 1.0, self.request.candidates
        # The answer is above `few` - 1 and, if anything passes, below `many`.
        few, many = MIN_KEPT, self.request.num_layers
        shares: dict[int, float] = {}
        tried: dict[int, Chosen] = {}
        num_kept = max(few, min(many - 1, round(FIRST_SHARE * many)))
        while few < many and (not tried or self._in_time(f"{num_kept} layers", BISECT_SHARE)):
            tried[num_kept], candidates = self._best(candidates, num_kept)
            share = shares[num_kept] = judge(tried[num_kept].record, wanted).share
            self.progress.note(
                f"{num_kept} layers: {share:.1%} of the full model's score, wanted {wanted:.1%}"
            )
            few, many = (few, num_kept) if share >= wanted else (num_kept + 1, many)
            num_kept = (few + many) // 2
        passing = [count for count, share in shares.items() if share >= wanted]
        return tried[min(passing, default=max(shares, key=lambda count: shares[count]))]

    def _best(
        self, candidates: Sequence[Candidate], num_kept: int
    ) -> tuple[Chosen, tuple[Candidate, ...]]:
        """Return the best candidate at a number of layers, and all candidates that were compared by
        the metric.
        """
        ranked: list[tuple[Trial, Candidate]] = []
        for candidate in candidates:
            step = f"{candidate.label} at {num_kept} layers"
            if ranked and not self._in_time(step, TRIAL_SHARE):
                advice = f"to include it, raise budget={self.config.budget:g}"
                self.progress.note(f"no time is left for {step}; {advice}")
            elif trial := self._try(step, candidate, num_kept):
                ranked.append((trial, candidate))
                ranked.sort(key=lambda pair: pair[0].loss)
                best = ranked[0][0]
                word = f"best so far: {best.candidate}, {best.loss:.3f}"
                word = "the best so far" if best is trial else word
                self.progress.note(f"{step}: decode loss {trial.loss:.3f} ({word})")
        if not ranked:
            raise RunError(f"no candidate works with {num_kept} layers; set other candidates=[...]")
        # Of candidates with the same layers and kind of patch, only the best is measured.
        distinct: dict[tuple[object, ...], tuple[Trial, Candidate]] = {}
        for trial, candidate in ranked:
            same = trial.kept_layers, candidate.config.correction.label
            distinct.setdefault(same, (trial, candidate))
        return self._choose(list(distinct.values())[: self.config.finalists], num_kept)

    def _choose(
        self,
        ranked: Sequence[tuple[Trial, Candidate]],
        num_kept: int,
        known: Sequence[Chosen] = (),
    ) -> tuple[Chosen, tuple[Candidate, ...]]:
        """Measure candidates; return the best one, with those measured before, and all of them."""
        self._runner.release()
        configs = [candidate.at(self.request.num_layers, num_kept) for _, candidate in ranked]
        records = self._measure(
            [config.replace(speed=config.speed.replace(enabled=False)) for config in configs]
        )
        points = [*known, *(Chosen(*pair, row) for pair, row in zip(ranked, records, strict=True))]
        points.sort(key=lambda point: point.trial.loss)
        best = points[decide([point.record for point in points])]
        return best, tuple(candidate for _, candidate in ranked)

    def _with_adapter(self, chosen: Chosen) -> Chosen:
        """Train a skip adapter for the chosen layers if the budget has time left, and return the
        better of both.
        """
        request, config, log = self.request, self.config, self._log
        steps = f"{config.adapter_steps} steps"
        wish = steps if config.adapter_steps else f"{config.budget:g} minutes, {config.adapter}"
        step = f"adapter for {chosen.trial.candidate} at {chosen.num_kept} layers"
        size = self.adapter = self._unless_refused(
            f"size of the {step} in {wish}",
            lambda: training_size(request, chosen, log.minutes, self.progress),
        )
        if "refused" not in size:
            self.adapter = self._unless_refused(
                f"{step}: train {size}",
                lambda: train_adapter(request, chosen, size, self.progress),
            )
        if "refused" in self.adapter:
            self.progress.note(f"left out: trained adapter: {self.adapter['refused']}")
            return chosen
        candidate = adapted(chosen, self.adapter["folder"])
        trial = self._try(f"{step}: decode loss after {size}", candidate, chosen.num_kept)
        if trial is None:
            return chosen
        self.progress.note(
            f"{trial.candidate}: decode loss {trial.loss:.3f}, before {chosen.trial.loss:.3f}"
        )
        return self._choose([(trial, candidate)], chosen.num_kept, [chosen])[0]

    def _try(self, step: str, candidate: Candidate, num_kept: int) -> Trial | None:
        """Return the trial of a candidate, or None if it does not apply."""
        outcome = self._unless_refused(
            step, lambda: self._runner.run(candidate, num_kept).plain(), (NotApplicable,)
        )
        if "refused" in outcome:
            self.progress.note(f"left out: {step}: {outcome['refused']}")
            return None
        self.trials.append(Trial.from_step(outcome, self._log.path))
        return self.trials[-1]

    def _unless_refused(
        self, step: str, run: Callable[[], Row], expected: Errors = (UsageError, RunError)
    ) -> Row:
        """Return the value of a step, or `refused` with the reason why this model or candidate
        cannot run it.
        """

        def attempt() -> Row:
            try:
                return run()
            except StorageError:
                raise
            except expected as error:
                return {"refused": str(error)}

        value: Row = self._log.once(step, attempt)
        return value

    def _in_time(self, step: str, share: float) -> bool:
        """Decide once whether the budget has time for a step; a resumed tuning with this budget
        decides in the same way.
        """
        budget = self.config.budget
        minutes = f"{budget:g} minutes"
        has_time = self._log.once(
            f"time for {step} in {minutes}", lambda: self._log.minutes <= share * budget
        )
        return bool(has_time)

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


def decide(records: Sequence[Record]) -> int:
    """Return the index of the best record; the records are sorted by decode loss.

    A later record is better if the interval of the metric's paired difference is above zero. If the
    interval includes zero, the agreement with the full model decides, because it varies less
    between examples; without agreement, the loss decides.
    """
    best, scorer = 0, Scorer()
    if metric := primary(records):
        for i in range(1, len(records)):
            verdict = scorer.difference(records[i], records[best], metric).verdict()
            closer = (records[i].agreement or 0.0) > (records[best].agreement or 0.0)
            if verdict == HOLDS or (verdict == TIE and closer):
                best = i
    return best
