"""A user's own schedule: a list of layers, or a file of `ulskip export --format schedule`."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import model_validator

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import option
from ulskip_cli.core.strategy import SkippingStrategy
from ulskip_cli.strategies import schedule_file
from ulskip_cli.strategies.schedule_file import ScheduleFile


class Custom(SkippingStrategy):
    """Keep exactly the layers that `layers` or the schedule file `file` lists."""

    layers: tuple[int, ...] = option(
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

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the listed layers, checked against the model's depth."""
        if self._read and self._read.num_layers != num_layers:
            raise UsageError(
                f"expected a schedule for the model's {num_layers} layers, got one for"
                f" {self._read.num_layers} in {self.file}; export a schedule for this model"
            )
        return schedule.checked(num_layers, self._listed)

    def canonical(self) -> Self:
        """Return the strategy with its layers listed, wherever they come from."""
        return self.replace(layers=tuple(self._listed), file=None)

    @property
    def _listed(self) -> Sequence[int]:
        return self._read.kept_layers if self._read else self.layers

    @cached_property
    def _read(self) -> ScheduleFile | None:
        if self.file is None:
            return None
        read = schedule_file.read(Path(self.file))
        if read.unit != self.unit:
            raise UsageError(
                f"expected strategy.unit={read.unit} with the schedule in {self.file}, got"
                f" {self.unit}; set it"
            )
        if read.later_stages:
            options = [f"strategy.{key}={value}" for key, value in read.strategy_options.items()]
            overrides = [
                f"strategy={read.strategy}",
                *options,
                *([f"ratio={read.target_ratio:g}"] if read.target_ratio else []),
            ]
            raise UsageError(
                f"strategy=custom does not support the later_stages in {self.file}; use"
                f" {' '.join(overrides)}"
            )
        return read
