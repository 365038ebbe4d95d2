"""The request of `ulskip tune`: its wish, its candidates, and the examples that calibrate, choose and report. No torch."""

import copy
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ulskip_cli.core import config as configuration
from ulskip_cli.core.config_schema import Config, TuneConfig
from ulskip_cli.core.engines import ENGINES
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.experiments.held_out import evaluated_examples, find_held_out
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.core.task import Example, Task

MIN_EXAMPLES = 16  # that a task needs, so that some of them can be held out
_OWN_KEYS = tuple(one.name for one in fields(TuneConfig) if one.name not in {own.name for own in fields(Config)})
_NOT_IN_KEY = ("budget", "adapter", "adapter_steps")  # they change no earlier step, so that these are used again
_FIXED = (
    "strategy",
    "ratio",
    "ratio_basis",
    "offset",
    "baseline",
    "baseline_engine",
    "baseline_model",
    "speed.enabled",
)  # every candidate sets its own


@dataclass(frozen=True)
class Candidate:
    """A strategy with its options, at any number of kept layers."""

    label: str  # the strategy and its options
    config: Config  # evaluates the examples that choose

    def at(self, num_layers: int, num_kept: int) -> Config:
        """Return the configuration that keeps `num_kept` of `num_layers` layers and evaluates the examples that choose."""
        return replace(copy.deepcopy(self.config), ratio=num_layers / num_kept)


@dataclass(frozen=True)
class TuneRequest:
    """A checked request."""

    config: TuneConfig
    overrides: tuple[str, ...]  # of the command line
    candidates: tuple[Candidate, ...]
    refused: tuple[str, ...]  # candidates that do not run with this model or engine, each with its reason
    split: "Split"
    num_layers: int
    key: str  # hash of everything that decides the result

    def at_the_end(self, config: Config) -> Config:
        """Return a candidate's configuration on the examples that are reported, with the same calibration examples."""
        last = self.split.final
        calibration = replace(config.calibration, task=last.calibration.task, offset=last.calibration.offset)
        return replace(config, task=last.task, offset=last.offset, limit=last.limit, calibration=calibration)


@dataclass(frozen=True)
class Split:
    """Two configurations with the same calibration examples, which evaluate different other examples."""

    choice: Config  # evaluates the examples that choose between candidates
    final: Config  # evaluates the examples that are reported
    num_choice: int
    num_final: int


def resolve(overrides: Sequence[str], extra_dir: Path | None = None) -> TuneRequest:
    """Check a command line and divide the examples; raise UsageError for a wish or data that cannot be used."""
    config = configuration.compose_tuning(overrides, extra_dir)
    if (config.speedup is None) is (config.quality is None):
        got = "neither" if config.speedup is None else f"both: {config.speedup:g} and {config.quality:g}"
        raise UsageError(f"expected speedup=S or quality=Q, got {got}; e.g. speedup=1.5, or quality=0.95")
    for text in overrides:
        if (key := text.partition("=")[0].lstrip("+~")).partition(".")[0] == "strategy" or key in _FIXED:
            raise UsageError(f"{key} is not supported by ulskip tune, which chooses it; list candidates=[...] instead")
    if config.model.source == "random":
        raise UsageError("ulskip tune requires a model with trained weights, got model=random; use another model=")
    if config.model.skip_adapter:
        raise UsageError("model.skip_adapter is not supported by ulskip tune, which makes patches; leave it out")
    split = divide(plain(config), config.choice_examples)
    resolver = Resolver()
    candidates, refused = [], []
    for text in config.candidates:
        try:
            found = _candidate(config, overrides, text, extra_dir, split)
            resolver.schedule(replace(found.config, ratio=1.0))
            candidates.append(found)
        except NotApplicable as error:
            refused.append(f"{text}: {error}")
    if not candidates:
        raise UsageError(
            f"expected at least one candidate that can run, got none; {'; '.join(refused)[:300] or 'set candidates=[...]'}"
        )
    point = resolver.resolve(replace(split.final, strategy=candidates[0].config.strategy, ratio=1.0))
    return TuneRequest(
        config=config,
        overrides=tuple(text for text in overrides if text.partition("=")[0] not in _OWN_KEYS),
        candidates=tuple(candidates),
        refused=tuple(refused),
        split=split,
        num_layers=point.metadata.num_layers,
        key=_key(config, point.fingerprint, split),
    )


def plain(config: TuneConfig) -> Config:
    """Return the configuration of a run, without the keys of `ulskip tune`."""
    return Config(**{one.name: copy.deepcopy(getattr(config, one.name)) for one in fields(Config)})


def divide(config: Config, wanted: int) -> Split:
    """Divide the examples: `limit` of them are reported, `wanted` others choose, and others again calibrate.

    The latter two come from the held-out examples of the task, or of `calibration.task`, or from those behind `limit`. Small
    data is divided in proportion.
    """
    task: Task = configuration.instantiate(config.task, "task")
    examples, calibration = task.examples(), config.calibration
    if len(examples) < MIN_EXAMPLES:
        raise UsageError(f"expected a task with at least {MIN_EXAMPLES} examples, got {len(examples)}; use more data")
    other = task.held_out()
    if calibration.task is not None:
        node = {**config.task, **calibration.task}
    elif other is not None:
        node = {**config.task, **asdict(other)}  # type: ignore[call-overload]
    else:
        return _one_file(config, len(examples), wanted)
    held_out = configuration.instantiate(node, "calibration.task").examples()
    limit = min(config.limit or len(examples), len(examples))
    reported = {_text(one) for one in examples[:limit]}
    if shared := sum(_text(one) in reported for one in held_out):
        raise UsageError(
            f"expected calibration.task without examples that are reported, got {shared} of them; set other data, or leave out "
            "calibration.task to hold out examples behind limit=N"
        )
    count = min(wanted, len(held_out) // 2)
    if count < 1:
        raise UsageError(f"expected at least 2 held-out examples, got {len(held_out)}; set other data in calibration.task")
    rest = replace(calibration, task=calibration.task, offset=0)
    choice = replace(config, task=node, offset=0, limit=count, calibration=replace(rest, task={}))
    final = replace(config, limit=limit, calibration=replace(rest, task=calibration.task, offset=count))
    return Split(choice, final, count, limit)


def _one_file(config: Config, total: int, wanted: int) -> Split:
    limit = min(config.limit or total, total // 2)
    count = min(wanted, total // 4)
    calibration = replace(config.calibration, offset=0)
    choice = replace(config, offset=limit, limit=count, calibration=calibration)
    final = replace(config, limit=limit, calibration=replace(calibration, offset=count))
    return Split(choice, final, count, limit)


def training_examples(split: Split) -> list[Example]:
    """Return the examples on which an adapter may be trained: those that calibrate, or all that `calibration.task` names.

    No example that chooses or is reported is among them. Raises UsageError if there is none.
    """
    calibration = split.final.calibration
    most = calibration.examples if calibration.task is None else sys.maxsize - calibration.offset
    held = find_held_out(_with_patch(replace(split.final, calibration=replace(calibration, examples=most))))
    used = {_text(one) for side in (split.choice, split.final) for one in _evaluated(side)}
    found = [one for one in held.examples if _text(one) not in used] if held else []
    if not found:
        raise UsageError("expected examples to train on that neither choose nor are reported, got none; use more data")
    return found


def _evaluated(config: Config) -> list[Example]:
    return evaluated_examples(config, configuration.instantiate(config.task, "task"))


def _with_patch(config: Config) -> Config:
    """Return a configuration that needs calibration examples, with any strategy."""
    return replace(config, strategy={**config.strategy, "patch": "full"})


def _text(example: Example) -> tuple[str, str]:
    return example.source, example.reference


def _candidate(config: TuneConfig, overrides: Sequence[str], text: str, extra_dir: Path | None, split: Split) -> Candidate:
    own = text.split()
    keys = [one.partition("=")[0] for one in own]
    if "strategy" not in keys or any(key.partition(".")[0] != "strategy" for key in keys):
        raise UsageError(
            f"expected candidates with strategy=NAME and keys of the strategy, got '{text[:80]}'; e.g. "
            "candidates=['strategy=search strategy.budget=20'], and other keys beside candidates"
        )
    strategy = configuration.compose_tuning([*overrides, *own], extra_dir).strategy
    if (unit := strategy.get("unit", LAYER)) != LAYER:
        raise NotApplicable(f"strategy.unit={unit} is not supported by ulskip tune, which compares whole layers")
    if "patch" in strategy and "strategy.patch" not in keys:
        kind = ("folded" if ENGINES[config.engine.name].is_runtime else "full") if config.patch == AUTO else config.patch
        strategy = {**strategy, "patch": kind}
        own = [*own, f"strategy.patch={kind}"]
    label = " ".join(one.removeprefix("strategy=").removeprefix("strategy.") for one in own)
    return Candidate(label, replace(split.choice, strategy=strategy))


def _key(config: TuneConfig, fingerprint: str, split: Split) -> str:
    """Return a hash of everything that decides what a tuning chooses, as 12 hexadecimal digits."""
    wish = {name: getattr(config, name) for name in _OWN_KEYS if name not in _NOT_IN_KEY}
    data = [
        [_text(one) for one in configuration.instantiate(side.task, "task").examples()] for side in (split.choice, split.final)
    ]
    held = find_held_out(_with_patch(split.choice))
    parts = [
        wish,
        configuration.identity(split.final),
        fingerprint,
        data,
        [_text(one) for one in held.examples] if held else [],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def describe(request: TuneRequest) -> dict[str, Any]:
    """Return the request as the record of a tuning stores it."""
    config = request.config
    return {
        "key": request.key,
        "speedup": config.speedup,
        "quality": config.quality,
        "model": config.model.label,
        "task": config.task["name"],
        "num_choice": request.split.num_choice,
        "num_final": request.split.num_final,
        "refused": list(request.refused),
    }
