"""Tasks: examples, the prompts made from them, and the metrics that score the answers.

A task is a frozen dataclass that implements `Task`; start with `jsonl.py`, the shortest. The package imports only
`ulskip_cli.core`, and torch or transformers only inside functions.
"""

from typing import Protocol

from ulskip_cli.tasks.loading import Example as Example
from ulskip_cli.tasks.metrics.scores import Scoring
from ulskip_cli.tasks.prompts import Template


class Task(Protocol):
    """Examples, the prompts made from the examples, and the metrics that score the answers."""

    @property
    def may_truncate_source(self) -> bool:
        """True if the end of a source may be dropped so that the prompt fits the model's context."""

    @property
    def data(self) -> str:
        """Name of the data in rows and tables."""

    def examples(self) -> list[Example]:
        """Return all examples in a fixed order."""

    def held_out(self) -> "Task | None":
        """Return a task with calibration examples that no run evaluates; return None if the task has no such examples."""

    def template_for(self, has_chat: bool) -> Template:
        """Return the template for a model with or without a chat template."""

    def hypothesis(self, text: str) -> str:
        """Extract the answer from a model's output."""

    def scoring(self) -> Scoring:
        """Return the metrics and their settings."""
