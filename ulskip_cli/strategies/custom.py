"""A user's own schedule: a list of layers, or a file of `ulskip export --format schedule`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ulskip_cli.core.config_schema import option
from ulskip_cli.core.errors import UsageError
from ulskip_cli.strategies import schedule, schedule_file
from ulskip_cli.strategies.patching import SkippingOptions
from ulskip_cli.strategies.schedule_file import ScheduleFile


@dataclass(frozen=True)
class Custom(SkippingOptions):
    """Keep exactly the layers that `layers` or the schedule file `file` lists."""

    layers: list[int] = option(list, "layers to keep, ascending numbers from 0; empty: use strategy.file")
    file: str | None = option(None, "schedule file of `ulskip export --format schedule`; null: use strategy.layers")
    follows_ratio: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers and self.file is not None:
            raise UsageError(f"expected strategy.layers or strategy.file, got both: {self.layers} and {self.file}; set one")

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return the number of listed layers."""
        return len(self._listed)

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the listed layers, checked against the model's depth."""
        if self._read and self._read.num_layers != num_layers:
            raise UsageError(
                f"expected a schedule for the model's {num_layers} layers, got one for {self._read.num_layers} in {self.file}; "
                "export a schedule for this model"
            )
        return schedule.checked(num_layers, self._listed)

    def stands_for(self) -> Mapping[str, Any]:
        """Return the options that identify a result: the layers, which come from `layers` or `file`."""
        return {"layers": list(self._listed)}

    @property
    def _listed(self) -> Sequence[int]:
        return self._read.kept_layers if self._read else self.layers

    @cached_property
    def _read(self) -> ScheduleFile | None:
        if self.file is None:
            return None
        found = schedule_file.read(Path(self.file))
        if found.unit != self.unit:
            raise UsageError(f"expected strategy.unit={found.unit} with the schedule in {self.file}, got {self.unit}; set it")
        if found.later_stages:
            options = [f"strategy.{key}={value}" for key, value in found.strategy_options.items()]
            overrides = [
                f"strategy={found.strategy}",
                *options,
                *([f"ratio={found.target_ratio:g}"] if found.target_ratio else []),
            ]
            raise UsageError(f"strategy=custom does not support the later_stages in {self.file}; use {' '.join(overrides)}")
        return found
