"""Expand the grid of a sweep: overrides with several values become one configuration per point."""

import contextlib
import math
from collections.abc import Container, Sequence
from itertools import product
from pathlib import Path

from ulskip_cli.core.config import GROUPS, compose_unvalidated, parse_overrides
from ulskip_cli.core.config_schema import AlternativesConfig, Config
from ulskip_cli.core.errors import NotApplicable, UnknownKey, UsageError
from ulskip_cli.core.validation import check_run
from ulskip_cli.experiments.sweep.alternatives import alternative_points

DEFAULT_EXPERIMENT = "reproduce"
MAX_POINTS = 1000


def points(
    overrides: Sequence[str], extra_dir: Path | None = None, preset: str | None = None
) -> list[Config]:
    """Return the configurations of a grid in the order of the overrides, without duplicates.

    An override may list values: `ratio=2,3`, `ratio=range(2,6)`, `strategy=glob(*)`. If
    they name no experiment, `preset` is used. Without a preset, the default experiment is used if
    every override has a single value.
    """
    composed: list[Config] = []
    for texts in _one_experiment_each(_with_preset(overrides, preset), extra_dir):
        composed += _grid(texts, extra_dir)
    if not composed:
        raise UsageError(
            f"expected at least one point, got none from {' '.join(overrides)[:160]}; give values,"
            " e.g. ratio=2,3"
        )
    folders = dict.fromkeys(str(Path(config.results_dir, config.name)) for config in composed)
    if len(folders) > 1:
        raise UsageError(
            f"expected one results folder for a sweep, got {', '.join(folders)}; set one name=NAME"
        )
    distinct: dict[str, Config] = {}
    for config in composed:
        distinct.setdefault(config.identity, config)
    return list(distinct.values())


def _one_experiment_each(overrides: Sequence[str], extra_dir: Path | None) -> list[list[str]]:
    """Return one list of overrides for every experiment that the overrides name, because each
    experiment has its own grid.
    """
    for i, override in enumerate(parse_overrides(overrides)):
        if override.key_or_group == "experiment" and override.is_sweep_override():
            return [
                [*overrides[:i], f"experiment={name}", *overrides[i + 1 :]]
                for name in override.values(extra_dir)
            ]
    return [list(overrides)]


def _grid(overrides: Sequence[str], extra_dir: Path | None) -> list[Config]:
    """Return every combination of the values swept on the command line and in the experiment, and
    then their alternatives.

    Inapplicable points are included, and inapplicable alternatives left out.
    """
    parsed = parse_overrides(overrides)
    fixed = [
        text
        for text, override in zip(overrides, parsed, strict=True)
        if not override.is_sweep_override()
    ]
    axes = {
        override.key_or_group: override.values(extra_dir)
        for override in parsed
        if override.is_sweep_override()
    }
    given = {override.key_or_group for override in parsed}
    grid = _composed(fixed, GROUPS, (), extra_dir)[0].sweep  # the points check the other keys
    presets = {key: text for key, text in grid.items() if key not in given}
    axes |= {
        key: parse_overrides([f"{key}={text}"])[0].values(extra_dir)
        for key, text in presets.items()
    }
    count = math.prod(map(len, axes.values()))
    if count > MAX_POINTS:
        raise UsageError(
            f"expected at most {MAX_POINTS} points in a sweep, got {count} or more; split it into"
            " several sweeps"
        )
    swept = [key for key, values in axes.items() if key in GROUPS and len(values) > 1]
    composed: list[Config] = []
    others: list[Config] = []
    nowhere: dict[str, UnknownKey] | None = None  # keys that every point rejects
    for values in product(*axes.values()):
        texts = [*fixed, *(f"{key}={value}" for key, value in zip(axes, values, strict=True))]
        config, foreign = _composed(texts, swept, presets.keys(), extra_dir)
        asked, config = config.alternatives, config.replace(alternatives=AlternativesConfig())
        refused = {error.key: error for error in foreign}
        nowhere = (
            refused if nowhere is None else {key: refused[key] for key in nowhere if key in refused}
        )
        with contextlib.suppress(NotApplicable):
            check_run(config, "sweep")
        composed.append(config)
        others += alternative_points(config, asked, texts, extra_dir)
    for key, error in (nowhere or {}).items():
        if (
            key not in presets or key.partition(".")[0] not in given
        ):  # a preset may sweep keys that the given choices lack
            raise error
    return [*composed, *others]


def _composed(
    texts: Sequence[str], swept: Sequence[str], presets: Container[str], extra_dir: Path | None
) -> tuple[Config, list[UnknownKey]]:
    """Compose a point; drop keys of presets and swept groups that do not exist for its choices, and
    return their errors.
    """
    foreign: list[UnknownKey] = []
    while True:
        try:
            return compose_unvalidated(texts, extra_dir), foreign
        except UnknownKey as error:
            if error.key.partition(".")[0] not in swept and error.key not in presets:
                raise
            foreign.append(error)
            texts = [text for text in texts if text.partition("=")[0].lstrip("+~") != error.key]


def _with_preset(overrides: Sequence[str], preset: str | None) -> Sequence[str]:
    parsed = parse_overrides(overrides)
    keys = {override.key_or_group for override in parsed}
    if "experiment" in keys:
        return overrides
    if preset is not None:
        return [f"experiment={preset}", *overrides]
    if any(override.is_sweep_override() for override in parsed):
        return overrides
    same = keys <= {"name", "results_dir"}  # other overrides change the experiment
    return [f"experiment={DEFAULT_EXPERIMENT}", *([] if same else ["name=default"]), *overrides]
