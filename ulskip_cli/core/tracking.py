"""Experiment trackers, used through accelerate: each finished point is a run of the tracker that
`tracker=` names.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import Table

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "ulskip"
_LEFT_OUT = ("config", "pairs")  # the raw samples of `pairs` stay in the row


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


def log_row(config: Config, row: Table, folder: Path) -> None:
    """Log a finished row to the tracker, if any: configuration, texts and lists as parameters, and
    all other numbers as metrics. A tracker that fails prints one warning.

    A tracker that writes local files writes them into `folder`.
    """
    if config.tracker == "none":
        return
    ratio = row.get("target_speedup")
    name = "-".join([row["strategy"], *([f"{ratio:g}x"] if ratio else []), row["id"]])
    parameters = dict(flatten(config.resolved()))
    metrics = {}
    for key, value in flatten({key: row[key] for key in row if key not in _LEFT_OUT}):
        if isinstance(value, bool | str):
            parameters[key] = value
        elif key not in parameters:
            metrics[key] = value
    # Trackers print, but `--json` needs standard output for itself; and they ask for a login, which
    # blocks a run.
    stdin, sys.stdin = sys.stdin, io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as cleanup:
            run = _make(config, name, folder)
            cleanup.callback(_finish, run)  # also after a failure
            run.start()
            run.store_init_configuration(parameters)
            run.log(metrics, step=None)
    except Exception as error:
        print(
            f"ulskip: tracker={config.tracker} failed, so {name} is not logged completely; its"
            f" results are not affected ({type(error).__name__}: {reason(error)})",
            file=sys.stderr,
        )
    finally:
        sys.stdin = stdin


def _make(config: Config, name: str, folder: Path) -> "GeneralTracker":
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers log through it, and not all of them create it
    kind, options = LOGGER_TYPE_TO_CLASS[config.tracker], dict(config.tracker_options or {})
    project = options.pop("project", PROJECT)
    if kind.requires_logging_directory:
        return kind(name, folder / config.tracker / project, **options)
    # The first argument of the others is the project, though accelerate calls it `run_name`.
    key = "run_name" if config.tracker == "mlflow" else "name"
    return kind(project, **{key: name, **options})


def _finish(run: "GeneralTracker") -> None:
    if run.name == "trackio":  # accelerate's finish() leaves the run open, which prints at exit
        import trackio

        trackio.finish()
    else:
        run.finish()
