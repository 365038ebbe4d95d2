"""What is asked of a model: examples, the prompts made of them, and how answers are judged."""

from typing import Protocol

from ulskip_cli.metrics.scores import Scores
from ulskip_cli.tasks.examples import Example


class Task(Protocol):
    """A set of examples and the judgement of answers to them."""

    def examples(self) -> list[Example]:
        """All examples, in their order."""

    def prompt_for(self, example: Example) -> str:
        """What the model reads."""

    def response_for(self, example: Example) -> str:
        """What it should write."""

    def hypothesis(self, text: str) -> str:
        """The answer in a model's output."""

    def score(self, hypotheses: list[str], references: list[str], full: list[str] | None = None) -> Scores:
        """Metric values, and with the full model's hypotheses a paired comparison."""
