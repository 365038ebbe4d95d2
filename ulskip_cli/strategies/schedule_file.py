"""Schedules as JSON files: `ulskip export --format schedule` writes them and `strategy.file=` reads them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ulskip_cli.core.config_schema import LAYER
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.typed_json import load_object, parse

FORMAT = "ulskip-schedule"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ScheduleFile:
    """Contents of a schedule file: one schedule and its origin."""

    num_layers: int
    kept_layers: tuple[int, ...]  # of the first steps, ascending
    later_stages: tuple[dict[str, Any], ...] = ()  # {"first_step": int, "kept_layers": [...]} each
    strategy: str = "custom"
    strategy_options: dict[str, Any] = field(default_factory=dict)
    target_ratio: float | None = None  # None if the strategy ignores it
    ratio_basis: str = "layers"
    prompt_layers: str = "all"  # all or kept
    model: str | None = None  # hub id, path or name
    made_by: str | None = None  # program, version and overrides
    unit: str = LAYER  # what is skipped: layer, attention or mlp

    def to_json(self) -> str:
        """Return the text of the file: format and version first, one key per line."""
        fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        if self.unit == LAYER:
            del fields["unit"]  # earlier versions do not have this key
        body = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
        return f"{{\n{body}\n}}\n"


def read(path: Path) -> ScheduleFile:
    """Read a schedule file; raise UsageError if it is invalid or lacks `format`, `num_layers` or `kept_layers`."""
    values = load_object(user_path(path, "a schedule file"), "a schedule")
    if values.get("format") != FORMAT:
        raise UsageError(
            f'expected a JSON object with "format": "{FORMAT}" at {path}; `ulskip export --format schedule` writes one'
        )
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UsageError(f"expected format_version {FORMAT_VERSION} in {path}, got {version}; export the schedule again")
    return parse(values, ScheduleFile, path)
