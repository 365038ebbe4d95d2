"""The classes that `_target_` of a task or strategy may name: those of shipped configs and of a user's `--config-dir`.

A row, an override or an experiment cannot name other classes, because the import of a class runs its module.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.yaml_files import read_mapping

GROUPS_OF_CLASSES = ("task", "strategy")
_own_classes: set[str] = set()


def allow_classes_of(config_dir: Path) -> None:
    """Allow the classes that the task and strategy files in a user's config folder name; an unreadable file names none."""
    for group in GROUPS_OF_CLASSES:
        for file in (config_dir / group).glob("*.yaml"):
            allow_classes(_classes_in(file, file.stat().st_mtime_ns))


def allow_classes(names: Iterable[str]) -> None:
    """Allow the classes that another process read from the user's config folder."""
    _own_classes.update(names)


def own_classes() -> frozenset[str]:
    """Return the allowed classes of the user's config folders, for other processes."""
    return frozenset(_own_classes)


def class_name(node: Mapping[str, Any], group: str, shipped_dir: Path) -> str:
    """Return the class that a config names; raise UsageError if it is not allowed, or if a shipped name has another class."""
    group = group.rpartition(".")[2]
    target, name, shipped = str(node.get("_target_"))[:200], str(node.get("name"))[:80], _shipped_classes(shipped_dir / group)
    if target != shipped.get(name, target):
        raise UsageError(
            f"expected {group}={name} to be the class {shipped[name]}, got {target}; choose it with {group}={name}"
        )
    if target not in (*shipped.values(), *_own_classes):
        raise UsageError(
            f"expected {group}={name} to name a class of ulskip or of a file in --config-dir, got _target_={target}; "
            f"add --config-dir DIR, whose {group}/NAME.yaml names the class"
        )
    return target


@functools.lru_cache(maxsize=256)
def _classes_in(file: Path, stamp: int) -> list[str]:
    try:
        target = read_mapping(file).get("_target_")
    except UsageError:
        return []
    return [target] if isinstance(target, str) else []  # a file without a class allows none


@functools.cache
def _shipped_classes(folder: Path) -> dict[str, str]:
    return {file.stem: read_mapping(file)["_target_"] for file in folder.glob("*.yaml")}
