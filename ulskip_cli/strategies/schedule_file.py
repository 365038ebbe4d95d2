"""Schedules as JSON files: `ulskip export --format schedule` writes them and `strategy.file=` reads them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path

FORMAT = "ulskip-schedule"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ScheduleFile:
    """Contents of a schedule file: one schedule and its origin."""

    num_layers: int
    kept_layers: tuple[int, ...]  # of the first steps, ascending
    later_stages: tuple[Mapping[str, Any], ...] = ()  # {"first_step": int, "kept_layers": [...]} each
    strategy: str = "custom"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    target_ratio: float | None = None  # None if the strategy ignores it
    ratio_basis: str = "layers"
    prompt_layers: str = "all"  # all or kept
    model: str | None = None  # hub id, path or name
    made_by: str | None = None  # program, version and overrides

    def to_json(self) -> str:
        """Return the text of the file: format and version first, one key per line."""
        fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        body = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
        return f"{{\n{body}\n}}\n"


def read(path: Path) -> ScheduleFile:
    """Read a schedule file; raise UsageError if it is invalid or lacks `format`, `num_layers` or `kept_layers`."""
    try:
        values = json.loads(user_path(path, "a schedule file").read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the schedule {path} ({error.strerror or error})") from None
    except ValueError as error:
        raise UsageError(f"expected a schedule in JSON at {path}, got another format ({error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UsageError(
            f'expected a JSON object with "format": "{FORMAT}" at {path}; `ulskip export --format schedule` writes one'
        )
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UsageError(f"expected format_version {FORMAT_VERSION} in {path}, got {version}; export the schedule again")
    num_layers, kept = values.get("num_layers"), values.get("kept_layers")
    if not _is_count(num_layers) or not isinstance(kept, list) or not all(map(_is_count, kept)):
        got = f"{json.dumps(num_layers)[:40]} and {json.dumps(kept)[:80]}"
        raise UsageError(f"expected an integer num_layers and a list of integers kept_layers in {path}, got {got}")
    known = {key: values[key] for key in ScheduleFile.__dataclass_fields__ if key in values}
    return ScheduleFile(**{**known, "kept_layers": tuple(kept), "later_stages": tuple(values.get("later_stages") or ())})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
