"""Reading of YAML config files, with errors that name the file and the line."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from ulskip_cli.core.errors import UsageError

_MAX_DEPTH = 100


class _StrictLoader(yaml.SafeLoader):
    """A loader that refuses duplicate keys, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key in (scalar for scalar, _ in node.value if isinstance(scalar, yaml.ScalarNode)):
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value[:80]}", key.start_mark
                )
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_mapping(file: Path) -> dict[str, Any]:
    """Read the keys of a YAML file; raise UsageError with the line if the file is unreadable or has
    no such form.
    """
    try:
        text = file.read_text("utf-8")
        if (
            max(accumulate((mark in "[{") - (mark in "]}") for mark in text), default=0)
            > _MAX_DEPTH
        ):
            raise ValueError("nested too deeply")  # PyYAML would need minutes
        values = yaml.load(text, _StrictLoader)
        json.dumps(values, default=str)  # refuses aliases that contain themselves
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(
            f"expected valid YAML in {file}{line}, got an error: {error.problem}"
        ) from None
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"expected valid YAML in {file}, got an error: {' '.join(reason.split())[:120]}"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(
            f"expected lines of the form `key: value` in {file}, got {str(values)[:80]}"
        )
    return values
