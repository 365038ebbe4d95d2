"""Experiment trackers, to which `tracker=` logs a training."""

import json
from collections.abc import Iterator
from importlib.util import find_spec

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import Table

PROJECT = "ulskip"


def check_installed(tracker: str) -> None:
    """Raise UsageError if the tracker's package is not installed."""
    package = "tensorboardX" if tracker == "tensorboard" else tracker
    if tracker != "none" and not any(map(_is_installed, (tracker, package))):
        raise UsageError(
            f"tracker={tracker} needs the package {package}; install it with: pip install"
            f" 'ulskip[{tracker}]'"
        )


def _is_installed(package: str) -> bool:
    spec = find_spec(package)  # without origin: a folder `wandb/` of logged runs
    return spec is not None and spec.origin is not None


def flatten(values: Table, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield dotted keys with plain values; lists become JSON texts, and keys with the value None
    are left out.
    """
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list | tuple) else value
