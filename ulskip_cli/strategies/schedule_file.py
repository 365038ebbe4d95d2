"""Schedules as JSON files: `ulskip export --format schedule` writes them and `strategy.file=` reads
them.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.options import Options, load_json, option, parse
from ulskip_cli.core.strategy import LAYER, Unit

FORMAT = "ulskip-schedule"
FORMAT_VERSION = 1


class ScheduleStage(Options):
    """A later stage of a schedule."""

    first_step: int
    kept_layers: tuple[int, ...]


class ScheduleFile(Options):
    """Contents of a schedule file: one schedule and its origin."""

    model_config = ConfigDict(extra="ignore")

    num_layers: int
    kept_layers: tuple[int, ...]  # of the first steps, ascending
    later_stages: tuple[ScheduleStage, ...] = ()
    strategy: str = "custom"
    strategy_options: dict[str, Any] = option(
        {}, "options of the strategy that differ from their defaults"
    )
    target_ratio: float | None = None  # None if the strategy ignores it
    ratio_basis: str = "layers"
    prompt_layers: Literal["all", "kept"] = "all"
    model: str | None = None  # hub id, path or name
    made_by: str | None = None  # program, version and overrides
    unit: Unit = LAYER  # what is skipped

    def to_json(self) -> str:
        """Return the text of the file: format and version first, one key per line."""
        fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **self.plain()}
        body = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in fields.items()
        )
        return f"{{\n{body}\n}}\n"


def read(path: Path) -> ScheduleFile:
    """Read a schedule file; raise UsageError if it is invalid or lacks `format`, `num_layers` or
    `kept_layers`.
    """
    values = load_json(user_path(path, "a schedule file"), "a schedule")
    if values.get("format") != FORMAT:
        raise UsageError(
            f'expected a JSON object with "format": "{FORMAT}" at {path}; `ulskip export --format'
            " schedule` writes one"
        )
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UsageError(
            f"expected format_version {FORMAT_VERSION} in {path}, got {version}; export the"
            " schedule again"
        )
    return parse(ScheduleFile, values, file=path)
