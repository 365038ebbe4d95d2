"""Experiment trackers, used through accelerate, which is imported when the first run is logged."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError

PROJECT = "ulskip"
_PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX")
}  # any of them; the others have the name of their tracker


def check_installed(tracker: str) -> None:
    """Raise UsageError if the tracker's package is not installed."""
    packages = _PACKAGES.get(tracker, (tracker,))
    if tracker != "none" and not any(_is_installed(package) for package in packages):
        raise UsageError(
            f"tracker={tracker} needs the package {packages[-1]}; install it with: pip install"
            f" 'ulskip[{tracker}]'"
        )


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    return (
        spec is not None and spec.origin is not None
    )  # a folder `wandb/` of logged runs is found too, without origin


@contextlib.contextmanager
def _without_input() -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = before


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with plain values; lists become JSON texts, and keys with the value None
    are left out.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list | tuple) else value


class TrackedRun:
    """One run in the configured experiment tracker, if any. The first failure prints one warning
    and stops the logging.
    """

    def __init__(self, config: Config, name: str, folder: Path) -> None:
        """Prepare a run; a tracker that writes local files writes them into `folder`."""
        self.name, self._folder = name, folder
        self._kind, self._options = config.tracker, dict(config.tracker_options or {})
        self._tracker: Any = None

    def start(self, parameters: Mapping[str, Any]) -> None:
        """Open the run and store its parameters."""
        if self._kind == "none":
            return

        def start() -> None:
            self._tracker = self._make()
            self._tracker.start()
            self._tracker.store_init_configuration(dict(parameters))

        self._try(start)

    def log(self, values: Mapping[str, Any]) -> None:
        """Log numbers."""
        if self._tracker is not None:
            self._try(lambda: self._tracker.log(dict(values), step=None))

    def finish(self) -> None:
        """Close the run."""
        if self._tracker is not None:
            self._try(self._close)
        self._tracker = None

    def _make(self) -> Any:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers log through it, and not all of them create it
        kind, options = LOGGER_TYPE_TO_CLASS[self._kind], dict(self._options)
        project = options.pop("project", PROJECT)
        if kind.requires_logging_directory:
            return kind(self.name, self._folder / self._kind / project, **options)
        if self._kind == "mlflow":
            return kind(project, **{"run_name": self.name, **options})
        return kind(project, **{"name": self.name, **options})

    def _close(self) -> None:
        if (
            self._kind == "trackio"
        ):  # accelerate's finish() leaves the run open, and trackio then prints when Python exits
            import trackio

            trackio.finish()
        else:
            self._tracker.finish()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            # Trackers print, but `--json` needs standard output for itself; and they ask for a
            # login, which blocks a run.
            with contextlib.redirect_stdout(io.StringIO()), _without_input():
                action()
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            print(
                f"ulskip: tracker={self._kind} failed, so {self.name} is not logged completely; its"
                f" results are not affected ({type(error).__name__}: {reason})",
                file=sys.stderr,
            )
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                self._close()
            self._tracker = None
