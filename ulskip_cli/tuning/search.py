"""The points of `ulskip tune`: candidates by decode loss, the best by their answers beside other
ways, and the best of all on examples that chose nothing.

Every point is a row of the results folder, so that an interrupted tuning continues.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from ulskip_cli.core.command_line import overrides_of
from ulskip_cli.core.config import baseline_config, preset
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import Record, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import GATE, QualityShare, is_faster, sentence, shares
from ulskip_cli.experiments.sweep.jobs import Job, Sweep, SweepObserver, make_jobs
from ulskip_cli.tuning.request import TuneRequest, at


@dataclass(frozen=True)
class TuneResult:
    """The best point that was tried, measured again on examples that chose nothing."""

    request: TuneRequest
    chosen: Record  # among the examples that choose
    record: Record  # on the others
    config: Config  # of the latter, which needs no calibration
    tried: tuple[Record, ...]

    @property
    def use(self) -> Config:
        """The configuration to use: the best point, or the full model if that is not faster."""
        return self.config if is_faster(self.record) else baseline_config(self.config)

    @property
    def value(self) -> tuple[float, float | None]:
        """The measured speedup or kept share of the score, with the low end of its interval."""
        measured = self.record.speedup
        if self.request.config.quality:
            measured = next((one.interval for one in judge([self.record], self.request)), None)
        return (measured.value, measured.low) if measured else (0.0, None)

    @property
    def meets_wish(self) -> bool:
        """True if the measured value reaches the wanted one."""
        return self.value[0] >= self.request.wanted

    @property
    def verdict(self) -> tuple[str, str]:
        """Say in two sentences what to use."""
        # named by the strategy that chose the layers
        config = self.record.config.replace(strategy=self.chosen.config.strategy)
        named = self.record.replace(config=config, correction=self.chosen.correction)
        wish, found = self.request.wish, sentence(named)
        if not is_faster(self.record):
            return (
                "Use the full model, because the best of what was tried is not surely faster.",
                f"The best: {found}",
            )
        if not self.meets_wish:
            return f"The best of what was tried misses {wish}.", f"It is the nearest: {found}"
        _, low = self.value
        sure = "surely met" if low and low >= self.request.wanted else "met, but not surely"
        return f"Use this: {found}", f"{wish} is {sure}, on examples that chose nothing."

    def as_json(self) -> Row:
        """Return what `--json` prints."""
        return {
            "verdict": list(self.verdict),
            "meets_wish": self.meets_wish,
            "candidate": self.chosen.label,
            "use": overrides_of(self.use, "run"),
            "row": self.record.to_row(),
            "tried": [record.to_row() for record in self.tried],
        }


@dataclass
class Tuning:
    """Runs a request. `observe` returns the display of some jobs."""

    request: TuneRequest
    observe: Callable[[Sequence[Job]], AbstractContextManager[SweepObserver]]
    tried: dict[str, Record] = field(default_factory=dict)  # by id

    def __post_init__(self) -> None:
        self._folder, self._resolver = ResultsFolder.of(self.request.choice).path, Resolver()
        left_out = [f"left out: {text}" for text in self.request.left_out]
        self._notes = [self.request.outlook(), *left_out]

    def run(self) -> TuneResult:
        """Run the points that have no row yet, and return the best one; raise RunError if no point
        can be judged.
        """
        if self.request.beside:
            self._measure(self.request.beside)
        self._try_layers()
        judged = judge(list(self.tried.values()), self.request)
        if not judged:
            raise RunError(
                "no point has a speed and a score to compare, or the full model's score is 0; use"
                " other candidates, another task or model"
            )
        best = max(judged, key=self._rank).record
        config = self._pinned(best)
        if not (last := self._measure([config])):
            raise RunError("the last run failed; repair its reason, and run the same command again")
        return TuneResult(self.request, best, last[0][1], config, tuple(self.tried.values()))

    def _try_layers(self) -> None:
        """Try candidates at one number of layers after another: for a wanted speedup fewer until
        one is fast enough, for a wanted quality by bisection.
        """
        request, candidates, count = self.request, self.request.candidates, self.request.first
        few, many = MIN_KEPT, request.num_layers  # `few` to `many` - 1 are untried
        while candidates and few < many:
            candidates, records = self._best(candidates, count)
            if request.config.speedup:
                fastest = max(record.measured_speedup or 0.0 for record in records)
                many = few if fastest >= request.wanted else count
                count = max(few, min(count - 1, int(count * fastest / request.wanted)))
            else:
                keeps = any(share.passes for share in judge(records, request))
                few, many = (few, count) if keeps else (count + 1, many)
                count = (few + many) // 2

    def _best(
        self, candidates: Sequence[Config], count: int
    ) -> tuple[tuple[Config, ...], list[Record]]:
        """Score the answers of the candidates with the lowest decode loss at a number of layers;
        return them with their rows.
        """
        request, choice = self.request, self.request.choice
        points = [at(candidate, request.num_layers, count) for candidate in candidates]
        if len(points) > request.config.finalists:
            untimed = choice.speed.replace(enabled=False)
            changes = {"answers": False, "baseline": False, "speed": untimed}
            measured = self._measure([point.replace(**changes) for point in points])
            distinct = dict[object, Config]()  # the best with the same layers and kind of patches
            for point, row in sorted(measured, key=lambda pair: pair[1].decode_loss or 0.0):
                distinct.setdefault((row.kept_layers, point.correction.label), point)
            changes = {"answers": True, "baseline": True, "speed": choice.speed}
            points = [point.replace(**changes) for point in distinct.values()]
        scored = self._measure(points[: request.config.finalists])
        if not scored:
            raise RunError(f"no candidate works with {count} layers; set other candidates=[...]")
        return tuple(point for point, _ in scored), [row for _, row in scored]

    def _measure(self, points: Sequence[Config]) -> list[tuple[Config, Record]]:
        """Run points with their baselines as a sweep, and return those that work with their
        rows.
        """
        jobs = make_jobs(points, self._resolver)
        with self.observe(jobs) as observer:
            while self._notes:
                observer.note(self._notes.pop(0))
            records = Sweep(jobs, observer).run().records
        rows = [(job, records[job.id].replace(folder=str(self._folder))) for job in jobs]
        measured = [(job.config, row) for job, row in rows if job.requested and row.is_done]
        self.tried |= {row.id: row for _, row in measured}
        return measured

    def _rank(self, share: QualityShare) -> tuple[bool, float, float]:
        """Order points: those that meet the wish first; for a wanted speedup by the kept score, for
        a wanted quality by the speedup, and those that miss it by how near they are.
        """
        speedup, kept = share.record.measured_speedup or 0.0, min(1.0, share.share)
        if self.request.config.speedup:
            meets = speedup >= self.request.wanted
            return meets, kept if meets else speedup, speedup
        return share.passes, speedup if share.passes else kept, speedup

    def _pinned(self, record: Record) -> Config:
        """Return the configuration that runs a point again, without calibration, on the examples
        that chose nothing.
        """
        final, ran, used = self.request.final, record.config, record.correction
        if record.keeps_all or record.draft_tokens:
            full = baseline_config(final)
            return full.replace(
                decoding=ran.decoding, engine=ran.engine, baseline_engine=ran.baseline_engine
            )
        correction = preset("correction", "none")
        if used:
            folder = used.path or str(self._folder / "calibrations" / str(used.id))
            correction = preset("correction", "adapter", {"path": [folder]})
        strategy = preset("strategy", "custom", {"layers": record.kept_layers})
        return final.replace(strategy=strategy, correction=correction)


def judge(records: Sequence[Record], request: TuneRequest) -> list[QualityShare]:
    """Return the share of the full model's score that each timed record keeps."""
    timed = [record for record in records if record.speedup]
    return shares(timed, request.config.quality or GATE)
