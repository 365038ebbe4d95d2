"""A schedule as a JSON file: what `ulskip export --format schedule` writes and `strategy.file=` reads. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import UsageError

FORMAT = "ulskip-schedule"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ScheduleFile:
    """One schedule and where it came from.

    Attributes:
        num_layers: N, the decoder layers of the model that it is for.
        kept_layers: that a decode step runs, ascending; those of the first steps, where there are later stages.
        later_stages: `{"first_step": int, "kept_layers": [...]}` of the steps from which on fewer layers run.
        strategy: its name.
        strategy_options: what else the strategy was given.
        target_ratio: the speedup asked for; None where the strategy ignores it.
        ratio_basis: what the ratio meant.
        prompt_layers: `all` or `kept`.
        model: hub id, path or name.
        made_by: program, version and overrides.
    """

    num_layers: int
    kept_layers: tuple[int, ...]
    later_stages: tuple[Mapping[str, Any], ...] = ()
    strategy: str = "custom"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    target_ratio: float | None = None
    ratio_basis: str = "layers"
    prompt_layers: str = "all"
    model: str | None = None
    made_by: str | None = None

    def to_json(self) -> str:
        """The file's text: format and version first, one key a line."""
        fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        body = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
        return f"{{\n{body}\n}}\n"


def read(path: Path) -> ScheduleFile:
    """A schedule that was written by `ScheduleFile.to_json`, or by hand with its `format`, `num_layers` and `kept_layers`.

    Raises:
        UsageError: there is no such file, it is no schedule, or it is of a newer format.
    """
    try:
        values = json.loads(path.expanduser().read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the schedule {path} ({error.strerror or error})") from None
    except ValueError as error:
        raise UsageError(f"{path} is no schedule: expected JSON ({error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UsageError(f'{path} is no schedule: expected a JSON object with "format": "{FORMAT}"')
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UsageError(f"{path} has format_version {version}; this ulskip reads {FORMAT_VERSION}")
    num_layers, kept = values.get("num_layers"), values.get("kept_layers")
    if not _is_count(num_layers) or not isinstance(kept, list) or not all(map(_is_count, kept)):
        raise UsageError(f"{path} is no schedule: expected num_layers, an integer, and kept_layers, a list of integers")
    known = {key: values[key] for key in ScheduleFile.__dataclass_fields__ if key in values}
    return ScheduleFile(**{**known, "kept_layers": tuple(kept), "later_stages": tuple(values.get("later_stages") or ())})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
