"""The commands `ulskip models`, `tasks`, `strategies` and `env`."""

import json
from collections.abc import Mapping
from pathlib import Path

from ulskip_cli.cli.options import ConfigDir, Json


def models(config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """List the models."""
    _list_group("model", config_dir, as_json)


def tasks(config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """List the tasks."""
    _list_group("task", config_dir, as_json)


def strategies(config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """List the strategies."""
    _list_group("strategy", config_dir, as_json)


def env(as_json: Json = False) -> None:
    """Show versions, device, threads and instruction set, for bug reports."""
    from ulskip_cli.core import environment

    facts = {**environment.code(), **environment.machine()}
    if as_json:
        print(json.dumps(facts))
        return
    packages = facts.pop("packages")
    _print_aligned({**facts, **packages})


def _list_group(group: str, config_dir: Path | None, as_json: bool) -> None:
    """Print the names and descriptions of a config group."""
    from ulskip_cli.core.config_reference import describe_choices

    entries = describe_choices(group, config_dir)
    if as_json:
        print(json.dumps(entries))
    else:
        _print_aligned(entries)


def _print_aligned(entries: Mapping[str, object]) -> None:
    width = max(map(len, entries))
    for key, value in entries.items():
        print(f"{key:<{width}}  {value}")
