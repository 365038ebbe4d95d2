"""Commands that list what there is: `ulskip models`, `tasks`, `strategies` and `env`."""

import json
from pathlib import Path
from typing import Any

from ulskip_cli.cli.options import ConfigDir, Json
from ulskip_cli.core import config


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
    """Show versions, device, threads and instruction set."""
    from ulskip_cli.core import environment

    facts = {**environment.code(), **environment.machine()}
    if as_json:
        print(json.dumps(facts))
        return
    flat = {**{k: v for k, v in facts.items() if k != "packages"}, **facts["packages"]}
    width = max(map(len, flat))
    for key, value in flat.items():
        print(f"{key:<{width}}  {value}")


def _list_group(group: str, config_dir: Path | None, as_json: bool) -> None:
    """Print the names and descriptions of a config group."""
    from omegaconf import OmegaConf

    entries: dict[str, Any] = {}
    for name, path in config.group_choices(group, config_dir).items():
        entries[name] = str(OmegaConf.select(OmegaConf.load(path), "description", default=""))
    if as_json:
        print(json.dumps(entries))
        return
    width = max(map(len, entries))
    for name, description in entries.items():
        print(f"{name:<{width}}  {description}")
