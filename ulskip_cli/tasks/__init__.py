"""What is asked of a model: examples, the prompts made of them, and how answers are judged."""

from typing import Protocol

from ulskip_cli.tasks.example import Example
from ulskip_cli.tasks.metrics.scores import Scoring
from ulskip_cli.tasks.prompts import Template


class Task(Protocol):
    """A set of examples and the judgement of answers to them."""

    @property
    def cuts_source(self) -> bool:
        """Whether a source that is too long for the model may lose its end."""

    @property
    def data(self) -> str:
        """The data's name in rows and tables."""

    def examples(self) -> list[Example]:
        """All examples, in their order."""

    def held_out(self) -> "Task | None":
        """The same task on examples that no run evaluates, to calibrate on; None where there are none."""

    def template_for(self, has_chat: bool) -> Template:
        """How an example is put to a model with or without a chat format of its own."""

    def hypothesis(self, text: str) -> str:
        """The answer in a model's output."""

    def scoring(self) -> Scoring:
        """Which metrics judge the answers."""
