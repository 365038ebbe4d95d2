"""Expand the grid of a sweep: overrides with several values become one configuration per point."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING

from ulskip_cli.core.config import (
    GROUPS,
    compose_point_or_grid,
    group_choices,
    parse_overrides,
)
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UnknownKey, UsageError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Glob, Override

DEFAULT_EXPERIMENT = "reproduce"
MAX_POINTS = 1000
# keys that say where results go or how a sweep runs; with these alone it has the default grid
_NOT_OF_POINTS = ("name", "results_dir", "launcher", "hydra")


def grid_configs(
    overrides: Sequence[str],
    default_experiment: str | None = None,
) -> list[Config]:
    """Return the configurations of a grid in the order of the overrides, without duplicates.

    Overrides follow Hydra's sweep syntax: `ratio=2,3`, `ratio=range(2,6)`, `strategy=glob(*)`. If
    they name no experiment, `default_experiment` is used, which is that of a command of the same
    name, such as `bench`. If that is None, the grid has the named values alone, or is that of
    DEFAULT_EXPERIMENT if no key of a point is named.
    """
    command = default_experiment or "sweep"
    composed = list(_grid(_with_experiment(overrides, default_experiment), command))
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
        distinct.setdefault(config.identity(command), config)
    return list(distinct.values())


def _with_experiment(overrides: Sequence[str], default_experiment: str | None) -> list[str]:
    """Return the overrides with an experiment, if they name none and it is wanted."""
    parsed = parse_overrides(overrides)
    keys = [override.key_or_group for override in parsed]
    if "experiment" in keys:
        chosen = parsed[keys.index("experiment")]
        if chosen.is_sweep_override():
            raise UsageError(
                f"expected one experiment, got '{chosen.input_line}'; run the command once for each"
            )
    elif default_experiment or all(key.partition(".")[0] in _NOT_OF_POINTS for key in keys):
        return [f"experiment={default_experiment or DEFAULT_EXPERIMENT}", *overrides]
    return list(overrides)


def _grid(overrides: Sequence[str], command: str) -> Iterator[Config]:
    """Yield every combination of the values swept on the command line and in the experiment;
    inapplicable points are included.
    """
    parsed = parse_overrides(overrides)
    given = {override.key_or_group for override in parsed}
    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    # The points check the keys that the first composition drops.
    grid = _compose_point(fixed, GROUPS, (), command)[0].sweep
    # values that the experiment sweeps, as overrides; those of the command line win
    presets = {key: f"{key}={text}" for key, text in grid.items() if key not in given}
    swept = [override for override in parsed if override.is_sweep_override()]
    axes = _axes([*swept, *parse_overrides(list(presets.values()))])
    # swept config groups, e.g. strategy, whose choices have different keys
    groups = [key for key, values in axes.items() if key in GROUPS and len(values) > 1]
    refusals: list[dict[str, UnknownKey]] = []  # of each point, by key
    for values in product(*axes.values()):
        texts = [*fixed, *(f"{key}={value}" for key, value in zip(axes, values, strict=True))]
        config, refused = _compose_point(texts, groups, presets, command)
        refusals.append(refused)
        yield config
    if refusals:
        # A preset may sweep keys that the given choices lack.
        optional = {key for key in presets if key.partition(".")[0] in given}
        _raise_unknown(refusals, optional)


def _axes(overrides: "Sequence[Override]") -> dict[str, list[str]]:
    """Return the values of each swept key; raise UsageError for too many combinations."""
    axes = {override.key_or_group: _swept_values(override) for override in overrides}
    count = math.prod(map(len, axes.values()))
    if count > MAX_POINTS:
        raise UsageError(
            f"expected at most {MAX_POINTS} points in a sweep, got {count} or more; split it into"
            " several sweeps"
        )
    return axes


def _raise_unknown(refusals: Sequence[Mapping[str, UnknownKey]], optional: Container[str]) -> None:
    """Raise the error of a key that every point refuses, unless it is optional."""
    for key, error in refusals[0].items():
        if key not in optional and all(key in refused for refused in refusals):
            raise error


def _compose_point(
    texts: Sequence[str],
    swept: Container[str],
    presets: Container[str],
    command: str,
) -> tuple[Config, dict[str, UnknownKey]]:
    """Compose a point; drop keys of presets and swept groups that do not exist for its choices, and
    return their errors.
    """
    refused: dict[str, UnknownKey] = {}
    while True:
        try:
            return compose_point_or_grid(texts, command), refused
        except UnknownKey as error:
            if error.key.partition(".")[0] not in swept and error.key not in presets:
                raise
            refused[error.key] = error
            texts = [text for text in texts if text.partition("=")[0].lstrip("+~") != error.key]


def _matching(pattern: "Glob", override: "Override") -> list[str]:
    """Return the choices of the group of an override that match a pattern."""
    group = override.key_or_group
    names = list(group_choices(group)) if group in GROUPS else []
    chosen = pattern.filter(names)
    if not chosen:
        raise UsageError(
            f"expected a pattern that matches one of {', '.join(names) or 'a config group'}, got"
            f" '{override.input_line}'; list values, e.g. {group}=A,B"
        )
    return chosen


def _swept_values(override: "Override") -> list[str]:
    """Return the values of an override as texts, but of a long sweep only one more than a grid may
    have.
    """
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.is_delete() or override.package is not None:
        raise UsageError(
            f"expected values of a key or group, got '{override.input_line}'; run the command once"
            " for each"
        )
    value = override.value()
    if isinstance(value, Glob):
        return _matching(value, override)
    try:
        return [str(text) for text in islice(override.sweep_string_iterator(), MAX_POINTS + 1)]
    except (HydraException, ValueError):
        raise UsageError(
            f"expected a list, range, choice or glob, e.g. ratio=2,3, got '{override.input_line}'"
        ) from None
