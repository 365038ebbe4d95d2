"""The finished steps of a tuning, one JSON line each, so that the same command continues after an
interruption.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ulskip_cli.core.files import append_line, read_jsonl
from ulskip_cli.core.printable import all_printable


class StepLog:
    """Stores the value of every finished step under its name, with its seconds."""

    def __init__(self, path: Path) -> None:
        """Read the steps that earlier processes finished; a damaged line counts as a step that is
        missing.
        """
        self.path = path
        steps = [step for step in read_jsonl(path) if {"step", "value", "seconds"} <= step.keys()]
        self._steps = {
            step["step"]: {**step, "value": all_printable(step["value"])} for step in steps
        }
        self._resumed_seconds: float = sum(step["seconds"] for step in self._steps.values())
        self._began = time.monotonic()

    def once(self, step: str, run: Callable[[], Any]) -> Any:
        """Return the stored value of a step, or run the step and store the JSON-ready value that it
        returns.
        """
        if step not in self._steps:
            began = time.monotonic()
            value = run()
            self._steps[step] = {
                "step": step,
                "value": value,
                "seconds": round(time.monotonic() - began, 1),
            }
            append_line(self.path, json.dumps(self._steps[step], ensure_ascii=False))
        return self._steps[step]["value"]

    @property
    def minutes(self) -> float:
        """The minutes that the tuning has taken, with those of the steps that earlier processes
        finished.
        """
        return (self._resumed_seconds + time.monotonic() - self._began) / 60
