"""`ulskip tune`: find what to use for a wanted speedup or a wanted quality, on held-out examples.

It is a sweep whose later points depend on the rows of earlier ones. `Tuning.of` divides the
examples and makes the points. `Tuning.run` runs them: candidates by decode loss, the best by their
answers beside other ways, and the best of all on the test examples, which choose nothing. Every
point is a row of the results folder, so that an interrupted tuning continues. Imports no torch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Self

from ulskip_cli.core import config as configuration
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.command_line import overrides_of
from ulskip_cli.core.config_schema import Config, TuneConfig
from ulskip_cli.core.correction import FittedPatches, read_adapter_file
from ulskip_cli.core.engines import AUTO
from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.core.files import JsonObject, user_path
from ulskip_cli.core.model_metadata import ModelConfig, ModelFolder
from ulskip_cli.core.progress import duration
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.core.task import Example, Task, check_references
from ulskip_cli.experiments.ledger import Job, Ledger, SweepObserver, make_jobs
from ulskip_cli.experiments.point import Resolver, evaluated_examples
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import GATE, QualityShare, is_faster, sentence, shares
from ulskip_cli.experiments.sweep import run_jobs
from ulskip_cli.strategies.plan import Plan, make_plan

MIN_EXAMPLES = 16  # of a task without held-out examples
FIRST_SHARE = 0.75  # of the layers, where the search for a wanted quality begins
# The engines and drafts that are tried with all layers.
FULL_DEPTH_ENGINES = ("llama_cpp_q8_0", "llama_cpp_q4_0")
DRAFTS = ("prompt_lookup", "self_speculative")
# For the estimate of the time: bytes of weights that are read in a second, letters of a token,
# tokens of a prompt that are read in the time of a decode step, how often a point reads its prompts
# for answers and losses, and its least number of timed pairs.
BYTES_PER_SECOND, LETTERS, READ_AT_ONCE, READS, PAIRS = 1e10, 4, 20, 5, 4

# Returns the display of some jobs.
Observe = Callable[[Sequence[Job]], AbstractContextManager[SweepObserver]]


@dataclass
class Tuning:
    """A checked request, whose points are configurations of ordinary runs, and the rows of those
    that have run.
    """

    config: TuneConfig
    validation: Config  # evaluates the validation examples, which choose
    test: Config  # evaluates the test examples, which choose nothing
    candidates: tuple[Config, ...]  # follow the ratio, which is set later
    others: tuple[Config, ...]  # ways with all layers, and candidates with layers of their own
    left_out: tuple[str, ...]  # what cannot run here, each with the reason
    num_layers: int
    first_count: int  # the number of kept layers that is tried first
    step_seconds: float  # of the full model, roughly
    resolver: Resolver
    tried: dict[str, Record] = field(default_factory=dict)  # by id

    @classmethod
    def of(cls, config: TuneConfig) -> Self:
        """Check a request, divide the examples and make the points; raise UsageError for a wish or
        data that cannot be used.
        """
        _check_wish(config)
        validation, test = divide(config)
        resolver = Resolver()
        folder, full_plan = resolver.schedule(configuration.baseline_config(validation), "tune")
        validation, num_layers = validation.replace(model=folder.model), full_plan.num_layers
        first_count = max(MIN_KEPT, min(num_layers - 1, round(FIRST_SHARE * num_layers)))
        if config.speedup:
            first_count = _num_kept_for_speedup(config.speedup, validation, num_layers, resolver)
        candidates = [_candidate(text, validation) for text in config.candidates]
        _check_plans([at(candidate, num_layers, first_count) for candidate in candidates], folder)
        ways, left_out = _ways_with_all_layers(validation, resolver)
        if not candidates:
            raise UsageError("expected at least one candidate, got none; leave out candidates=[]")
        # Its examples or metrics may be unusable, which is better said now than after the search.
        resolver.resolve(configuration.baseline_config(test))
        # Such as the layers of an adapter: there is no number of layers to search for.
        fixed = [candidate for candidate in candidates if not candidate.strategy.follows_ratio]
        return cls(
            config=config,
            validation=validation,
            test=test,
            candidates=tuple(candidate for candidate in candidates if candidate not in fixed),
            others=(*fixed, *ways),
            left_out=tuple(left_out),
            num_layers=num_layers,
            first_count=first_count,
            step_seconds=_step_seconds(full_plan),
            resolver=resolver,
        )

    @property
    def wanted(self) -> float:
        """The wanted speedup, or share of the full model's score."""
        return self.config.speedup or self.config.quality or 1.0

    @property
    def wish(self) -> str:
        """The wanted value as the user gave it."""
        return f"{'speedup' if self.config.speedup else 'quality'}={self.wanted:g}"

    def outlook(self) -> str:
        """Say what is tried, on how many examples, and about how long it takes."""
        validation, test = evaluated_examples(self.validation), evaluated_examples(self.test)
        count, num_others = len(self.candidates), len(self.others)
        scored = min(count, self.config.finalists)
        # The prediction for a speedup is about right; a quality is found by bisection.
        rounds = 1 if self.config.speedup else math.ceil(math.log2(self.num_layers - MIN_KEPT))
        num_points = scored * rounds + num_others
        # The full model runs on both sets of examples, the best point on the test examples.
        # Candidates whose loss alone is measured are calibrated, which is about as much work.
        seconds = (num_points + 1) * self._timing_seconds(validation)
        seconds += (num_points + 1 + 2 * count) * self._work_seconds(validation)
        seconds += 2 * self._work_seconds(test)
        ways = []
        if count:
            ways.append(
                f"{count} candidates at {self.first_count} of {self.num_layers} layers by decode"
                f" loss, the best {scored} by their answers"
            )
        if num_others:
            ways.append(f"{num_others} other way{'s' if num_others > 1 else ''}")
        return (
            f"tries {', and '.join(ways)} on {len(validation)} examples; then the best of all on"
            f" {len(test)} others: {duration(seconds)}"
        )

    def _work_seconds(self, examples: Sequence[Example]) -> float:
        """Estimate the time in which a point reads its prompts, and decodes answers that are about
        as long as the references.
        """
        reading = sum(len(example.source) for example in examples) * READS / READ_AT_ONCE
        decoding = sum(len(example.reference) for example in examples) / self.validation.batch_size
        return (reading + decoding) / LETTERS * self.step_seconds

    def _timing_seconds(self, examples: Sequence[Example]) -> float:
        """Estimate the time of the timed pairs of a point, which read the prompts of a batch."""
        letters = sum(len(example.source) for example in examples) / len(examples)
        reading = self.validation.batch_size * letters / LETTERS / READ_AT_ONCE
        pair = 2 * (reading + self.validation.speed.new_tokens) * self.step_seconds
        return max(self.validation.speed.seconds, PAIRS * pair)

    def run(self, observe: Observe) -> "TuneResult":
        """Run the points that have no row yet, and return the best one; raise RunError if no point
        can be judged. `observe` makes the progress display of each sweep.
        """
        self._observe = observe
        # lines that `_measure` prints once, when the first display is there
        self._notes = [self.outlook(), *(f"left out: {text}" for text in self.left_out)]
        if self.others:
            self._measure(self.others)
        self._try_layers()
        judged = self.judged(self.tried.values())
        if not judged:
            raise RunError(
                "no point has a speed and a score to compare, or the full model's score is 0; use"
                " other candidates, another task or model"
            )
        best = max(judged, key=self._rank).record
        config = self._test_config(best)
        measured = self._measure([config])
        if not measured:
            raise RunError("the last run failed; repair its reason, and run the same command again")
        _, record = measured[0]
        return TuneResult(self, best, record, config)

    def _try_layers(self) -> None:
        """Try candidates at one number of layers after another: for a wanted speedup fewer until
        one is fast enough, for a wanted quality by bisection to the fewest layers that keep it.
        Only the finalists of a round are tried in the next. The rows are added to `tried`.
        """
        candidates, count = self.candidates, self.first_count
        few, many = MIN_KEPT, self.num_layers  # `few` to `many` - 1 are untried
        while candidates and few < many:
            candidates, records = self._finalists(candidates, count)
            if self.config.speedup:
                fastest = max(record.measured_speedup or 0.0 for record in records)
                many = few if fastest >= self.wanted else count
                # A step's time is about proportional to its layers.
                count = max(few, min(count - 1, int(count * fastest / self.wanted)))
            else:
                keeps = any(share.passes for share in self.judged(records))
                few, many = (few, count) if keeps else (count + 1, many)
                count = (few + many) // 2

    def _finalists(
        self, candidates: Sequence[Config], count: int
    ) -> tuple[tuple[Config, ...], tuple[Record, ...]]:
        """Run the candidates at `count` layers, first by decode loss alone if they are many, then
        the best with answers and speed. Return the configurations of these finalists and their
        rows, in the same order; raise RunError if none works.
        """
        points = [at(candidate, self.num_layers, count) for candidate in candidates]
        if len(points) > self.config.finalists:
            speed = self.validation.speed
            changes = {"answers": False, "baseline": False, "speed": speed.replace(enabled=False)}
            measured = self._measure([point.replace(**changes) for point in points])
            # Strategies can choose the same layers; with the same patches one of them is enough.
            distinct = dict[object, Config]()
            for point, row in sorted(measured, key=lambda pair: _loss(pair[1])):
                distinct.setdefault((row.kept_layers, point.correction.label), point)
            changes = {"answers": True, "baseline": True, "speed": speed}
            points = [point.replace(**changes) for point in distinct.values()]
        scored = self._measure(points[: self.config.finalists])
        if not scored:
            raise RunError(f"no candidate works with {count} layers; set other candidates=[...]")
        finalists, rows = zip(*scored, strict=True)
        return finalists, rows

    def _measure(self, points: Sequence[Config]) -> list[tuple[Config, Record]]:
        """Run points with their baselines as a sweep; return [(configuration, its row)] of the
        points that work, without the baselines, and add the rows to `tried`.
        """
        jobs = make_jobs(points, self.resolver)
        with self._observe(jobs) as observer:
            while self._notes:
                observer.note(self._notes.pop(0))
            ledger = Ledger(jobs)
            run_jobs(ledger, observer)
        # from which statistics read the stored answers
        folder = str(ledger.folder.path)
        rows = [
            (job.config, ledger.settled[job.id].replace(folder=folder))
            for job in jobs
            if job.requested
        ]
        measured = [(config, row) for config, row in rows if row.is_done]
        self.tried |= {row.id: row for _, row in measured}
        return measured

    def judged(self, records: Iterable[Record]) -> list[QualityShare]:
        """Return the share of the full model's score that each record keeps. Records without a
        speed or a score are left out, because they cannot be ranked.
        """
        timed = [record for record in records if record.speedup]
        return shares(timed, self.config.quality or GATE)

    def _rank(self, share: QualityShare) -> tuple[bool, float, float]:
        """Return a sort key, which is highest for the best point. Points that meet the wish are
        above all others, and are ordered by what was not asked for: the kept score or the speedup.
        Points that miss it are ordered by how near they are. The speedup decides between equals.
        """
        speedup, kept = share.record.measured_speedup or 0.0, min(1.0, share.share)
        if self.config.speedup:
            meets = speedup >= self.wanted
            return meets, kept if meets else speedup, speedup
        return share.passes, speedup if share.passes else kept, speedup

    def _test_config(self, record: Record) -> Config:
        """Return the configuration that runs a point again on the test examples, with the layers
        and patches of its row in place of a new calibration. A way with all layers, the only one
        that is tried with drafts, repeats its decoding and engine.
        """
        ran, used = record.config, record.correction
        if record.keeps_all or record.draft_tokens:
            full = configuration.baseline_config(self.test)
            return full.replace(
                decoding=ran.decoding, engine=ran.engine, baseline_engine=ran.baseline_engine
            )
        correction = configuration.preset("correction", "none")
        if used:
            # An adapter has a path. Patches that the run fitted are stored under their id.
            fitted = ResultsFolder.of(self.validation).path / "calibrations" / str(used.id)
            path = {"path": [used.path or str(fitted)]}
            correction = configuration.preset("correction", "adapter", path)
        strategy = configuration.preset("strategy", "custom", {"layers": record.kept_layers})
        return self.test.replace(strategy=strategy, correction=correction)


@dataclass(frozen=True)
class TuneResult:
    """The best point that was tried, measured again on the test examples."""

    tuning: Tuning
    chosen: Record  # the best point's row on the validation examples
    record: Record  # its row on the test examples
    config: Config  # that of `record`, which needs no calibration

    @property
    def use(self) -> Config:
        """The configuration to use: the best point, or the full model if that is not faster."""
        return self.config if is_faster(self.record) else configuration.baseline_config(self.config)

    @property
    def value(self) -> tuple[float, float | None]:
        """The measured speedup or kept share of the score, with the low end of its interval."""
        measured = self.record.speedup
        if self.tuning.config.quality:
            measured = next((share.interval for share in self.tuning.judged([self.record])), None)
        return (measured.value, measured.low) if measured else (0.0, None)

    @property
    def meets_wish(self) -> bool:
        """True if the measured value reaches the wanted one."""
        return self.value[0] >= self.tuning.wanted

    @property
    def verdict(self) -> tuple[str, str]:
        """Say in two sentences what to use."""
        # The last run has strategy=custom; readers know the strategy that chose its layers.
        config = self.record.config.replace(strategy=self.chosen.config.strategy)
        named = self.record.replace(config=config, correction=self.chosen.correction)
        wish, result = self.tuning.wish, sentence(named)
        if not is_faster(self.record):
            return (
                "Use the full model, because the best of what was tried is not surely faster.",
                f"The best: {result}",
            )
        if not self.meets_wish:
            return f"The best of what was tried misses {wish}.", f"It is the nearest: {result}"
        _, low = self.value  # a wish is surely met if the whole interval meets it
        sure = "surely met" if low and low >= self.tuning.wanted else "met, but not surely"
        return f"Use this: {result}", f"{wish} is {sure}, on examples that chose nothing."

    def as_json(self) -> JsonObject:
        """Return what `--json` prints."""
        return {
            "verdict": list(self.verdict),
            "meets_wish": self.meets_wish,
            "candidate": self.chosen.label,
            "use": overrides_of(self.use, "run"),
            "row": self.record.to_row(),
            "tried": [record.to_row() for record in self.tuning.tried.values()],
        }


def at(config: Config, num_layers: int, count: int) -> Config:
    """Return a candidate's configuration with the ratio that keeps `count` of `num_layers`
    layers.
    """
    ratio = num_layers / count
    if config.strategy.num_kept(num_layers, ratio) != count:
        # The published spacing rounds N / ratio down, also a little below a whole number.
        ratio *= 1 - 1e-12
    return config.replace(ratio=ratio)


def _check_wish(config: TuneConfig) -> None:
    """Raise UsageError unless exactly one wish is set."""
    if (config.speedup is None) is (config.quality is None):
        given = "neither" if config.speedup is None else "both"
        raise UsageError(
            f"expected either speedup=S or quality=Q, got {given}; use e.g. speedup=1.5 or"
            " quality=0.95"
        )


def _check_plans(points: Sequence[Config], folder: ModelFolder) -> None:
    """Raise NotApplicable for a point that no number of layers makes possible."""
    for point in points:
        try:
            make_plan(point, folder.metadata, "tune")
        except NotApplicable:
            raise
        except UsageError:  # e.g. layers for another ratio, which a later point can have
            continue


def _step_seconds(full_plan: Plan) -> float:
    """Estimate the seconds of a step of the full model from the bytes that it reads; 0 if these
    are unknown.
    """
    weights = full_plan.sizes.weights
    return weights.total / BYTES_PER_SECOND if weights else 0.0


def divide(config: TuneConfig) -> tuple[Config, Config]:
    """Return a configuration that evaluates `choice_examples` validation examples, which choose,
    and one that evaluates `limit` test examples; raise UsageError for too few or repeated examples.

    The validation examples and those after them, for calibration, are those of `calibration.task`,
    the held-out ones of the task, or if these are few, those after `limit`.
    """
    # the same settings without the keys of `tune`
    test = Config.model_construct(**{key: getattr(config, key) for key in Config.model_fields})
    examples, wanted = config.task.examples(), config.choice_examples
    check_references(examples, "`ulskip tune`")
    held_out_task = _held_out_task(config)
    if held_out_task:
        held_out = held_out_task.examples()
        limit = min(config.limit or len(examples), len(examples))
        count = min(wanted, len(held_out) // 2)
        rest = config.calibration.replace(task={})  # the examples after the first `count`
        validation = test.replace(task=held_out_task, limit=count, calibration=rest)
    else:  # the first half of the task's examples is for the test, the third quarter chooses
        limit = min(config.limit or len(examples), len(examples) // 2)
        held_out, count = examples[limit:], min(wanted, len(examples) // 4)
        validation = test.replace(offset=limit, limit=count)
    if count < MIN_EXAMPLES // 4:
        raise UsageError(
            f"expected at least {MIN_EXAMPLES} examples, or {MIN_EXAMPLES // 2} held-out ones in"
            f" calibration.task, got {len(examples)} and {len(held_out)} held out; use more data"
        )
    unique = {example.texts for example in held_out}
    shared = sum(example.texts in unique for example in examples[:limit])
    if repeated := len(held_out) - len(unique) + shared:
        raise UsageError(
            f"expected examples that occur once, got {repeated} again among those that choose,"
            " calibrate or choose nothing; set data without the repeated ones"
        )
    return validation, test.replace(limit=limit)


def _held_out_task(config: TuneConfig) -> Task | None:
    """Return the task whose examples choose and calibrate; None if they have to be those of the
    request's own task.
    """
    if config.calibration.task:
        return configuration.changed_choice(
            config.task, config.calibration.task, "calibration.task."
        )
    held_out = config.task.held_out()
    is_large = held_out and len(held_out.examples()) >= MIN_EXAMPLES // 2
    return held_out if is_large else None


def _num_kept_for_speedup(
    wanted: float, validation: Config, num_layers: int, resolver: Resolver
) -> int:
    """Return the largest number of layers whose predicted speedup reaches the wanted one; raise
    UsageError if none does.
    """
    highest = 0.0  # fewer layers are faster, so the last prediction is the highest
    for count in range(num_layers - 1, MIN_KEPT - 1, -1):
        _, plan = resolver.schedule(at(validation, num_layers, count), "tune")
        highest = plan.predicted_speedup or plan.layer_ratio  # if sizes of weights are unknown
        if highest >= wanted:
            return count
    raise UsageError(
        f"speedup={wanted:g} is out of reach by skipping layers: {MIN_KEPT} of {num_layers} layers"
        f" are predicted to decode {highest:.2f} times as fast; use speedup <="
        f" {math.floor(100 * highest) / 100:g}"
    )


def _candidate(text: str, validation: Config) -> Config:
    """Return `validation` with the strategy and correction of a candidate's text."""
    chosen = configuration.compose(_overrides_of_candidate(text, validation.model), "run")
    strategy, correction = chosen.strategy, chosen.correction
    if strategy.keeps_all:
        raise UsageError("expected candidates that skip layers, got strategy=full; leave it out")
    is_patch, has_kind = isinstance(correction, FittedPatches), "correction.kind" in text
    # Engines that cannot add patches to hidden states can load them folded into the weights.
    if is_patch and not has_kind and Need.PATCHES not in validation.engine.supports:
        correction = correction.replace(kind="folded")
    return validation.replace(strategy=strategy, correction=correction)


def _overrides_of_candidate(text: str, model: ModelConfig) -> list[str]:
    """Return the overrides in a candidate's text, such as `strategy=search correction=patch`. A
    trained adapter, `correction.path=runs/a`, runs the first layers that it was trained for, unless
    the text names a strategy.
    """
    words = text.split()
    if others := [word for word in words if not word.startswith(("strategy", "correction"))]:
        advice = "leave it out" if "=" in others[0] else f"write strategy={others[0]}"
        raise UsageError(
            f"expected keys of strategy and correction in candidates, got {others[0]}; {advice}"
        )
    path = next((word for word in words if word.startswith("correction.path=")), "")
    if path and "correction=adapter" not in words:
        words.append("correction=adapter")
    if not any(word.startswith("strategy=") for word in words):
        if not path:
            raise UsageError(
                f"expected strategy=NAME or correction.path=FOLDER in each candidate, got"
                f" '{text[:80]}'; for example candidates=['strategy=search correction=patch']"
            )
        adapter = read_adapter_file(user_path(path.partition("=")[2], path), model)
        layers = ",".join(map(str, adapter.kept_sets[0]))
        words += ["strategy=custom", f"strategy.layers=[{layers}]"]
    return words


def _loss(record: Record) -> float:
    """Return the decode loss by which candidates are ranked; one that was not measured is last."""
    return math.inf if record.decode_loss is None else record.decode_loss


def _ways_with_all_layers(validation: Config, resolver: Resolver) -> tuple[list[Config], list[str]]:
    """Return what may be faster with all layers: drafts at batch size 1, and engines of llama.cpp
    unless the request names an engine. The texts are what cannot run here, each with the reason.
    """
    full, ways, left_out = configuration.baseline_config(validation), list[Config](), list[str]()
    changes_by_name: dict[str, dict[str, object]] = {}
    if validation.engine.name == AUTO:
        for name in FULL_DEPTH_ENGINES:
            engine = configuration.preset("engine", name)
            changes_by_name[f"engine={name}"] = {"engine": engine, "baseline_engine": AUTO}
    if validation.batch_size == 1:
        for name in DRAFTS:
            drafts = configuration.read_choice("decoding", name)
            changes_by_name[f"decoding={name}"] = {"decoding": full.decoding.replace(**drafts)}
    for name, changes in changes_by_name.items():
        way = full.replace(**changes)
        try:
            resolver.schedule(way, "run")
            ways.append(way)
        except UsageError as error:  # it cannot run here
            left_out.append(f"{name}: {error}")
    return ways, left_out
