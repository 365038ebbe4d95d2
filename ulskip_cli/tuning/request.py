"""The request of `ulskip tune`: the wanted value, the examples that choose, and the points that are
tried. Imports no torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ulskip_cli.core import capabilities
from ulskip_cli.core import config as configuration
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.config_schema import Config, TuneConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.progress import duration
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.core.task import AUTO, Example, check_references
from ulskip_cli.corrections import Patch, read_record
from ulskip_cli.experiments.preflight import Resolver, evaluated_examples, find_held_out

MIN_EXAMPLES = 16  # of a task without held-out examples
FIRST_SHARE = 0.75  # of the layers, where the search for a wanted quality begins
BESIDE = ("llama_cpp_q8_0", "llama_cpp_q4_0")  # engines that are tried with all layers
# For the estimate of the time: bytes of weights that a step reads in a second, prompt tokens that
# take as long as a step, letters of a token, losses that fit the patches of a candidate, and steps
# of the answers that patches are fitted on.
BYTES_PER_SECOND, PROMPT_TOKENS, LETTERS, FITS, OWN_STEPS = 5e9, 20, 4, 6, 500


@dataclass(frozen=True)
class TuneRequest:
    """A checked request, whose points are configurations of ordinary runs."""

    config: TuneConfig
    choice: Config  # evaluates the examples that choose
    final: Config  # evaluates examples that choose nothing
    candidates: tuple[Config, ...]  # follow the ratio, which is set later
    beside: tuple[Config, ...]  # ways with all layers, and candidates with layers of their own
    left_out: tuple[str, ...]  # what cannot run here, each with the reason
    num_layers: int
    first: int  # the number of kept layers that is tried first
    step_seconds: float  # of the full model, roughly

    @property
    def wanted(self) -> float:
        """The wanted speedup, or share of the full model's score."""
        return self.config.speedup or self.config.quality or 1.0

    @property
    def wish(self) -> str:
        """The wanted value as the user gave it."""
        return f"{'speedup' if self.config.speedup else 'quality'}={self.wanted:g}"

    def outlook(self) -> str:
        """Say what is tried, and about how long it takes."""
        choosing, last = (evaluated_examples(config) for config in (self.choice, self.final))
        count, beside, layers = len(self.candidates), len(self.beside), self.num_layers
        scored = min(count, self.config.finalists)
        rounds = 1 if self.config.speedup else math.ceil(math.log2(layers - MIN_KEPT))
        runs = scored * rounds + beside + 1  # with the full model
        answers = 1 + PROMPT_TOKENS / self.choice.batch_size  # with their decode loss
        seconds = runs * (self._seconds(choosing, answers) + self.choice.speed.seconds)
        seconds += 2 * self._seconds(last, answers) + self.choice.speed.seconds
        seconds += OWN_STEPS * self.step_seconds
        calibrating = find_held_out(self.choice, choosing).examples
        for candidate in self.candidates:
            fits = getattr(candidate.strategy, "budget", 0) + FITS * candidate.correction.is_fitted
            seconds += self._seconds(choosing, 1) + self._seconds(calibrating, fits)
        ways = [
            f"{count} candidates at {self.first} of {layers} layers by decode loss, the best"
            f" {scored} by their answers" * bool(count),
            f"{beside} other way{'s' * (beside > 1)}" * bool(beside),
        ]
        return (
            f"tries {', and '.join(filter(None, ways))} on {len(choosing)} examples; then the best"
            f" of all on {len(last)} others: {duration(seconds)}"
        )

    def _seconds(self, examples: Sequence[Example], times: float) -> float:
        """Estimate the seconds of reading prompts once, and references so many times."""
        letters = sum(len(example.source) + times * len(example.reference) for example in examples)
        return self.step_seconds * letters / LETTERS / PROMPT_TOKENS


def resolve_tuning(config: TuneConfig) -> TuneRequest:
    """Check a request, divide the examples and make the points; raise UsageError for a wish or data
    that cannot be used.
    """
    if (config.speedup is None) is (config.quality is None):
        found = "neither" if config.speedup is None else "both"
        raise UsageError(
            f"expected either speedup=S or quality=Q, got {found}; use e.g. speedup=1.5 or"
            " quality=0.95"
        )
    choice, final = divide(config)
    resolver = Resolver()
    files, full = resolver.schedule(configuration.baseline_config(choice), "run")
    choice, num_layers = choice.replace(model=files.model), full.num_layers
    first = max(MIN_KEPT, min(num_layers - 1, round(FIRST_SHARE * num_layers)))
    if config.speedup:
        first = _predicted(choice, num_layers, config.speedup, resolver)
    candidates = [_candidate(text, choice) for text in config.candidates]
    beside, left_out = _with_all_layers(choice, resolver)
    own = [candidate for candidate in candidates if not candidate.strategy.follows_ratio]
    if not candidates:
        raise UsageError("expected at least one candidate, got none; leave out candidates=[]")
    resolver.resolve(configuration.baseline_config(final))  # its examples and metrics
    weights = full.sizes.weights
    step_bytes = weights.head + sum(weights.layers) if weights else 0
    return TuneRequest(
        config=config,
        choice=choice,
        final=final,
        candidates=tuple(one for one in candidates if one not in own),
        beside=(*own, *beside),
        left_out=tuple(left_out),
        num_layers=num_layers,
        first=first,
        step_seconds=step_bytes / BYTES_PER_SECOND,
    )


def at(config: Config, num_layers: int, count: int) -> Config:
    """Return a candidate's configuration that keeps `count` of `num_layers` layers."""
    ratio = num_layers / count
    if config.strategy.num_kept(num_layers, ratio) != count:
        ratio *= 1 - 1e-12  # the published spacing rounds down without a tolerance
    return config.replace(ratio=ratio)


def divide(config: TuneConfig) -> tuple[Config, Config]:
    """Return a configuration that evaluates `choice_examples` to choose, and one that evaluates
    `limit` others, which choose nothing.

    The examples that choose and those after them, for calibration, are those of `calibration.task`,
    the held-out ones of the task, or if these are few, those after `limit`.
    """
    final = Config.model_construct(**{key: getattr(config, key) for key in Config.model_fields})
    task, calibration, wanted = config.task, config.calibration, config.choice_examples
    examples = task.examples()
    check_references(examples, "`ulskip tune`")
    source = task.held_out()
    if source and len(source.examples()) < MIN_EXAMPLES // 2:
        source = None
    if calibration.task is not None:
        source = configuration.changed_choice(task, calibration.task, "calibration.task.")
    if source:
        held, limit = source.examples(), min(config.limit or len(examples), len(examples))
        count = min(wanted, len(held) // 2)
        rest = calibration.replace(task={})
        choice = final.replace(task=source, limit=count, calibration=rest)
    else:
        limit = min(config.limit or len(examples), len(examples) // 2)
        held, count = examples[limit:], min(wanted, len(examples) // 4)
        choice = final.replace(offset=limit, limit=count)
    if count < MIN_EXAMPLES // 4:
        raise UsageError(
            f"expected at least {MIN_EXAMPLES} examples, or {MIN_EXAMPLES // 2} held-out ones in"
            f" calibration.task, got {len(held)} to choose and to calibrate; use more data"
        )
    unique = {example.texts for example in held}
    shared = sum(example.texts in unique for example in examples[:limit])
    if repeated := len(held) - len(unique) + shared:
        raise UsageError(
            f"expected examples that occur once, got {repeated} again among those that choose,"
            " calibrate or choose nothing; set data without the repeated ones"
        )
    return choice, final.replace(limit=limit)


def _predicted(choice: Config, num_layers: int, wanted: float, resolver: Resolver) -> int:
    """Return the largest number of layers whose predicted speedup reaches the wanted one; raise
    UsageError if none does.
    """
    highest = 0.0
    for count in range(num_layers - 1, MIN_KEPT - 1, -1):
        _, plan = resolver.schedule(at(choice, num_layers, count), "run")
        highest = plan.predicted_speedup or plan.layer_ratio
        if highest >= wanted:
            return count
    raise UsageError(
        f"speedup={wanted:g} is out of reach by skipping layers: {MIN_KEPT} of {num_layers} layers"
        f" are predicted to decode {highest:.2f} times as fast; use speedup <="
        f" {math.floor(100 * highest) / 100:g}"
    )


def _candidate(text: str, choice: Config) -> Config:
    """Read a candidate, such as `strategy=search correction=patch`, or the folder of a trained
    adapter, `correction.path=runs/a`, which runs the layers that it was trained for.
    """
    words = text.split()
    if others := [word for word in words if not word.startswith(("strategy", "correction"))]:
        raise UsageError(
            f"expected keys of strategy and correction in candidates, got {others[0]}; leave it out"
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
        record = read_record(user_path(path.partition("=")[2], path), choice.model)
        layers = ",".join(map(str, record.kept_sets[0]))
        words += ["strategy=custom", f"strategy.layers=[{layers}]"]
    chosen = configuration.compose_unvalidated(words, "run")
    strategy, correction = chosen.strategy, chosen.correction
    if strategy.keeps_all:
        raise UsageError("expected candidates that skip layers, got strategy=full; leave it out")
    is_patch, has_kind = isinstance(correction, Patch), "correction.kind" in text
    if is_patch and not has_kind and Need.PATCHES not in choice.engine.supports:
        correction = correction.replace(kind="folded")
    candidate = choice.replace(strategy=strategy, correction=correction)
    capabilities.check(candidate.needs(), "tune")
    return candidate


def _with_all_layers(choice: Config, resolver: Resolver) -> tuple[list[Config], list[str]]:
    """Return what may be faster with all layers: drafts by look-up at batch size 1, and engines of
    llama.cpp unless the request names an engine; also what cannot run here, with the reasons.
    """
    full, points, left_out = configuration.baseline_config(choice), list[Config](), list[str]()
    wanted = {
        f"engine={name}": {"engine": configuration.preset("engine", name), "baseline_engine": AUTO}
        for name in BESIDE
        if choice.engine.name == AUTO
    }
    if choice.batch_size == 1:
        drafts = configuration.read_choice("decoding", "prompt_lookup")
        keys = ("name", "draft", "draft_tokens")
        decoding = choice.decoding.replace(**{key: drafts[key] for key in keys})
        wanted["decoding=prompt_lookup"] = {"decoding": decoding}
    for name, changes in wanted.items():
        point = full.replace(**changes)
        try:
            resolver.schedule(point, "run")
            points.append(point)
        except UsageError as error:
            left_out.append(f"{name}: {error}")
    return points, left_out
