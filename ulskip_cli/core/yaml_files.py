"""Reading of YAML config files, with errors that name the file and the line."""

from pathlib import Path
from typing import Any

import yaml

from ulskip_cli.core.errors import UsageError


class _StrictLoader(yaml.SafeLoader):
    """A loader that refuses duplicate keys, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.value in keys and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value[:80]}", key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


def read_mapping(file: Path) -> dict[str, Any]:
    """Read the keys of a YAML file; raise UsageError with the line if the file is unreadable or has no such form."""
    try:
        values = yaml.load(file.read_text("utf-8"), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"expected valid YAML in {file}{line}, got an error: {error.problem}") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"expected valid YAML in {file}, got an error: {' '.join(reason.split())[:120]}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"expected lines of the form `key: value` in {file}, got {str(values)[:80]}")
    return values
