"""Strategies whose layers are known before any weight is read: the full model, unified skipping,
the two simple baselines, and a user's own schedule.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import JsonValue, model_validator

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.options import Stored, load_json, option, parse
from ulskip_cli.core.schedule import Layers
from ulskip_cli.core.strategy import ScheduleRequest, Strategy

SPACINGS = {"even": schedule.even, "reference": schedule.reference}
FORMAT = "ulskip-schedule"
FORMAT_VERSION = 1


class Full(Strategy):
    """Keep all layers at every ratio."""

    follows_ratio = False
    keeps_all = True

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return the number of all layers."""
        return num_layers

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers 0 to N-1."""
        return tuple(range(request.num_layers))


class Unified(Strategy):
    """Keep the first, the last and evenly spread layers between them (arXiv:2404.06954)."""

    spacing: Literal["even", "reference"] = option(
        "even", "rounding of layer numbers; even: to the nearest, reference: as in the paper's code"
    )

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return floor(N / r); `reference` does not correct rounding errors of the division, like
        the published code.
        """
        return schedule.num_kept(
            num_layers, target_speedup, tolerance=0.0 if self.spacing == "reference" else 1e-9
        )

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return both ends and evenly spread layers between them."""
        return SPACINGS[self.spacing](request.num_layers, request.num_kept)


class TopSkip(Strategy):
    """Keep the first R layers, a static early exit (a baseline of arXiv:2404.06954)."""

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the first R layers."""
        return tuple(range(request.num_kept))


class BottomSkip(Strategy):
    """Keep the last R layers (a baseline of arXiv:2404.06954)."""

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the last R layers."""
        return tuple(range(request.num_layers - request.num_kept, request.num_layers))


class ScheduleFile(Stored):
    """Contents of a schedule file: one schedule and its origin."""

    num_layers: int
    kept_layers: Layers  # of the first steps, ascending
    later_stages: tuple[schedule.Stage, ...] = ()
    strategy: str = "custom"
    strategy_options: dict[str, JsonValue] = option(
        {}, "options of the strategy that differ from their defaults"
    )
    target_ratio: float | None = None  # None if the strategy ignores it
    ratio_basis: str = "layers"
    model: str | None = None  # hub id, path or name
    task: str | None = None  # on whose examples the layers were chosen; None: unknown
    made_by: str | None = None  # program, version and overrides

    def to_json(self) -> str:
        """Return the text of the file: format and version first, one key per line."""
        fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **self.plain()}
        body = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in fields.items()
        )
        return f"{{\n{body}\n}}\n"


def read_schedule(path: Path) -> ScheduleFile:
    """Read a schedule file; raise UsageError if it is invalid or lacks `format`, `num_layers` or
    `kept_layers`.
    """
    values = load_json(user_path(path, "a schedule file"), "a schedule")
    if (values.get("format"), values.get("format_version", 1)) != (FORMAT, FORMAT_VERSION):
        raise UsageError(
            f'expected a JSON object with "format": "{FORMAT}" and "format_version":'
            f" {FORMAT_VERSION} at {path}, got {values.get('format')} and"
            f" {values.get('format_version')}; `ulskip export --format schedule` writes one"
        )
    return parse(ScheduleFile, values, file=path)


class Custom(Strategy):
    """Keep exactly the layers that `layers` or the schedule file `file` lists."""

    layers: Layers = option(
        (), "layers to keep, ascending numbers from 0; empty: use strategy.file"
    )
    file: str | None = option(
        None, "schedule file of `ulskip export --format schedule`; null: use strategy.layers"
    )
    follows_ratio = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.layers and self.file is not None:
            raise UsageError(
                f"expected strategy.layers or strategy.file, got both: {list(self.layers)} and"
                f" {self.file}; set one"
            )
        return self

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return the number of listed layers."""
        return len(self._listed)

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the listed layers, checked against the model's depth."""
        if self._read and self._read.num_layers != request.num_layers:
            raise UsageError(
                f"expected a schedule for the model's {request.num_layers} layers, got one for"
                f" {self._read.num_layers} in {self.file}; export a schedule for this model"
            )
        return schedule.checked(request.num_layers, self._listed)

    def canonical(self) -> Self:
        """Return the strategy with its layers listed, also if a file contains them."""
        return self.replace(layers=tuple(self._listed), file=None)

    @property
    def chosen_on(self) -> str | None:
        """The task that the schedule file names."""
        return self._read.task if self._read else None

    @property
    def _listed(self) -> Sequence[int]:
        return self._read.kept_layers if self._read else self.layers

    @cached_property
    def _read(self) -> ScheduleFile | None:
        if self.file is None:
            return None
        schedule_file = read_schedule(Path(self.file))
        if schedule_file.later_stages:
            raise UsageError(
                f"strategy=custom does not support the later_stages in {self.file}; use"
                f" strategy={schedule_file.strategy} with the strategy_options in it"
            )
        return schedule_file
