"""The request of `ulskip tune`: the wanted value, the candidates, and the examples to calibrate,
choose and report with. Imports no torch.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ulskip_cli.core import config as configuration
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.command_line import overrides_of
from ulskip_cli.core.config_schema import Config, TuneConfig
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.files import digest
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.options import Options
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.core.strategy import Strategy
from ulskip_cli.core.task import AUTO, Example, check_references
from ulskip_cli.corrections import Patch
from ulskip_cli.experiments.preflight import Resolver, evaluated_examples, find_held_out

MIN_EXAMPLES = 16  # that a task needs, so that some of them can be held out
LOOK_UP = "decoding=prompt_lookup"
# These keys change no earlier step, so finished steps are used again.
_NOT_IN_KEY = {"budget", "adapter", "adapter_steps"}
_IN_KEY = TuneConfig.model_fields.keys() - Config.model_fields.keys() - _NOT_IN_KEY


@dataclass(frozen=True)
class Candidate:
    """A strategy with its options, at any number of kept layers, or an alternative with all
    layers.
    """

    label: str  # the strategy and its options, or the choice that tells the alternative
    config: Config  # evaluates the examples that choose

    def at(self, num_layers: int, num_kept: int) -> Config:
        """Return the configuration that keeps `num_kept` of `num_layers` layers and evaluates the
        examples that choose.
        """
        ratio = num_layers / num_kept
        if self.config.strategy.num_kept(num_layers, ratio) != num_kept:
            ratio *= 1 - 1e-12  # the published spacing rounds down without a tolerance
        return self.config.replace(ratio=ratio)


@dataclass(frozen=True)
class TuneRequest:
    """A checked request."""

    config: TuneConfig
    candidates: tuple[Candidate, ...]
    alternatives: tuple[Candidate, ...]  # with all layers
    refused: tuple[str, ...]  # what cannot run here, each with its reason
    split: "Split"
    num_layers: int
    key: str  # hash of everything that decides the result


@dataclass(frozen=True)
class Split:
    """Two configurations with the same calibration examples, which evaluate different other
    examples.
    """

    choice: Config  # evaluates the examples that choose between candidates
    final: Config  # evaluates the examples that are reported
    num_choice: int
    num_final: int

    def at_the_end(self, config: Config, count: int) -> Config:
        """Return a candidate's configuration on the first `count` examples of the final report,
        with the same calibration examples.
        """
        final, calibration = self.final, self.final.calibration
        if self.choice.offset:  # the calibration examples are behind those of the report
            offset = calibration.offset + self.num_final - count
            calibration = calibration.replace(offset=offset)
        values = {"task": final.task, "offset": final.offset, "limit": count}
        return config.replace(**values, calibration=calibration)


class Trial(Options):
    """A candidate at one number of kept layers."""

    candidate: str  # its label
    kept_layers: tuple[int, ...]
    loss: float  # decode loss in nats per token
    patch: str | None  # the id of its patches, which names their folder
    adapter: str | None = None  # the folder of its trained skip adapter

    @property
    def strategy(self) -> Strategy:
        """The strategy that runs these layers."""
        made: Strategy = configuration.preset("strategy", "custom", {"layers": self.kept_layers})
        return made


@dataclass(frozen=True)
class Chosen:
    """The best candidate at one number of layers."""

    trial: Trial
    candidate: Candidate

    @property
    def num_kept(self) -> int:
        """Number of kept layers."""
        return len(self.trial.kept_layers)


def resolve_tuning(config: TuneConfig) -> TuneRequest:
    """Check a request and divide the examples; raise UsageError for a wish or data that cannot be
    used.
    """
    if (config.speedup is None) is (config.quality is None):
        found = "neither" if config.speedup is None else "both"
        raise UsageError(
            f"expected either speedup=S or quality=Q, got {found}; use e.g. speedup=1.5 or"
            " quality=0.95"
        )
    num_layers = ModelFolder(config.model).metadata.num_layers
    highest = num_layers / MIN_KEPT
    if config.speedup is not None and config.speedup > highest:
        raise UsageError(
            f"expected speedup <= {highest:g}, because {config.model.label} has {num_layers} layers"
            f" and at least {MIN_KEPT} are kept, got {config.speedup:g}"
        )
    split = divide(plain(config), config.choice_examples)
    resolver = Resolver()
    candidates, refused = [], []
    for text in config.candidates:
        try:
            candidate = _candidate(config, text, split)
            resolver.schedule(candidate.config.replace(ratio=1.0), "tune")
            candidates.append(candidate)
        except NotApplicable as error:
            refused.append(f"{text}: {error}")
    if not candidates:
        raise UsageError(
            "expected at least one candidate that can run, got none;"
            f" {'; '.join(refused)[:300] or 'set candidates=[...]'}"
        )
    alternatives, left_out = _alternatives(split.choice, resolver)
    point = resolver.resolve(
        split.at_the_end(candidates[0].config, split.num_final).replace(ratio=1.0)
    )
    return TuneRequest(
        config=config,
        candidates=tuple(candidates),
        alternatives=tuple(alternatives),
        refused=(*left_out, *refused),
        split=split,
        num_layers=num_layers,
        key=_key(config, point.files.fingerprint, split),
    )


def plain(config: TuneConfig) -> Config:
    """Return the configuration of a run, without the keys of `ulskip tune`."""
    return Config.model_construct(**{name: getattr(config, name) for name in Config.model_fields})


def check_unique(examples: Sequence[Example], origin: str) -> None:
    """Raise UsageError for examples that occur twice: they could choose and be reported."""
    if repeated := len(examples) - len({example.texts for example in examples}):
        raise UsageError(
            f"expected {origin} without repetitions, got {repeated} examples again; set a file"
            " without the repeated ones"
        )


def divide(config: Config, wanted: int) -> Split:
    """Divide the examples without overlap: `limit` for the report, `wanted` to choose, the others
    to calibrate.

    Examples to choose and calibrate come from `calibration.task`, the held-out examples of the
    task, or the examples after `limit`. Small data is divided in proportion.
    """
    task, calibration = config.task, config.calibration
    examples = task.examples()
    check_references(examples, "`ulskip tune`")
    if len(examples) < MIN_EXAMPLES:
        raise UsageError(
            f"expected a task with at least {MIN_EXAMPLES} examples, got {len(examples)}; use more"
            " data"
        )
    if calibration.offset:
        raise UsageError(
            "expected calibration.offset=0, because `ulskip tune` divides the held-out examples,"
            f" got {calibration.offset}; leave it out"
        )
    source, total = task.held_out(), len(examples)
    if calibration.task is not None:
        source = configuration.changed_choice(task, calibration.task, "calibration.task.")
    if source is None:
        check_unique(examples, "task.file")
        limit, count = min(config.limit or total, total // 2), min(wanted, total // 4)
        calibration = calibration.replace(offset=0)
        choice = config.replace(offset=limit, limit=count, calibration=calibration)
    else:
        held_out = source.examples()
        limit, count = min(config.limit or total, total), min(wanted, len(held_out) // 2)
        reported = {example.texts for example in examples[:limit]}
        if shared := sum(example.texts in reported for example in held_out):
            raise UsageError(
                f"expected calibration.task without examples of the final report, got {shared} of"
                " them; set other data, or leave out calibration.task to use the examples after"
                " limit=N"
            )
        check_unique(held_out, "calibration.task")
        if count < 1:
            raise UsageError(
                f"expected at least 2 held-out examples, got {len(held_out)}; set other data in"
                " calibration.task"
            )
        from_source = calibration.replace(task={}, offset=0)
        choice = config.replace(task=source, offset=0, limit=count, calibration=from_source)
    final = config.replace(limit=limit, calibration=calibration.replace(offset=count))
    return Split(choice, final, count, limit)


def training_examples(split: Split) -> list[Example]:
    """Return the examples on which an adapter may be trained: the calibration examples, or all of
    `calibration.task`.

    Examples that are used to choose or to report are left out. Raises UsageError if none is
    left.
    """
    calibration = split.final.calibration
    if calibration.task is not None:
        calibration = calibration.replace(examples=sys.maxsize)  # all
    held = find_held_out(split.final.replace(calibration=calibration)).examples
    evaluated = [*evaluated_examples(split.choice), *evaluated_examples(split.final)]
    used = {example.texts for example in evaluated}
    unused = [example for example in held if example.texts not in used]
    if not unused:
        raise UsageError(
            "expected examples to train on beside those that choose and those that are reported,"
            " got none; use more data"
        )
    return unused


def _candidate(config: TuneConfig, text: str, split: Split) -> Candidate:
    """Read a candidate, such as `strategy=search strategy.budget=20`. It has the correction of the
    request unless it names another. Its patches are folded if the engine supports no others.
    """
    words = text.split()
    if not any(word.startswith("strategy=") for word in words):
        raise UsageError(
            f"expected strategy=NAME in each candidate, got '{text[:80]}'; for example"
            " candidates=['strategy=search strategy.budget=20']"
        )
    if others := [word for word in words if not word.startswith(("strategy", "correction"))]:
        raise UsageError(f"expected keys of strategy and correction, got {others[0]}; leave it out")
    asked = f"correction={config.correction.name}"
    names_another = any(word.startswith("correction=") and word != asked for word in words)
    everywhere = [] if names_another else overrides_of(config, "run")
    shared = [word for word in everywhere if word.startswith("correction")]
    chosen = configuration.compose_unvalidated([*shared, *words], "run")
    strategy, correction = chosen.strategy, chosen.correction
    is_set = "kind" in config.correction.model_fields_set or "correction.kind" in text
    if isinstance(correction, Patch) and not is_set and Need.PATCHES not in config.engine.supports:
        correction = correction.replace(kind="folded")
    if not strategy.follows_ratio:
        raise UsageError(
            f"expected candidates that keep any number of layers, got strategy={strategy.name}; use"
            " one that follows the ratio, such as one_block"
        )
    label = " ".join(word.removeprefix("strategy=").removeprefix("strategy.") for word in words)
    if correction.label and "correction" not in text:
        label = f"{label} + {correction.label} patch"
    return Candidate(label, split.choice.replace(strategy=strategy, correction=correction))


def _alternatives(choice: Config, resolver: Resolver) -> tuple[list[Candidate], list[str]]:
    """Return what may be faster with all layers, and what cannot run, with the reasons: drafts by
    look-up, and the engines of other libraries unless the request names one, those with the most
    bits per weight first.
    """
    full, decoding = configuration.baseline_config(choice), choice.decoding
    wanted, refused = dict[str, Config](), dict[str, str]()
    if choice.batch_size > 1:
        refused["tried with batch_size=1 alone, where drafts pay"] = LOOK_UP
    elif not decoding.do_sample:
        drafts = decoding.replace(name="prompt_lookup", draft="ngram", draft_tokens=AUTO)
        wanted[LOOK_UP] = full.replace(decoding=drafts)
    names = configuration.group_choices("engine") if choice.engine.name == AUTO else ()
    engines = [configuration.preset("engine", name) for name in names]
    ranked = sorted(zip(names, engines, strict=True), key=lambda pair: -pair[1].layer_bits)
    for name, engine in ranked:
        if engine.is_runtime:
            changes = {"engine": engine, "decoding": decoding, "baseline_engine": AUTO}
            wanted[f"engine={name}"] = full.replace(**changes)
    found = []
    for label, config in wanted.items():
        try:
            resolver.schedule(config, "run")
            found.append(Candidate(label, config))
        except UsageError as error:  # one line for all formats of an engine
            refused.setdefault(str(error), label)
    return found, [f"{label}: {reason}" for reason, label in refused.items()]


def _key(config: TuneConfig, fingerprint: str, split: Split) -> str:
    """Return a hash of everything that decides what a tuning chooses, as 12 hexadecimal digits."""
    wish = {name: getattr(config, name) for name in _IN_KEY}
    data = [
        [example.texts for example in side.task.examples()] for side in (split.choice, split.final)
    ]
    held = [example.texts for example in find_held_out(split.choice).examples]
    return digest([wish, split.final.identity(), fingerprint, data, held])
