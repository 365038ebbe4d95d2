"""GSM8K: grade school problems of mathematics, scored by the last number of an answer."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import Table
from ulskip_cli.core.options import option
from ulskip_cli.core.task import Example
from ulskip_cli.tasks.jsonl import Jsonl
from ulskip_cli.tasks.metrics import metrics_option

TRAIN = "train"
QUESTION = "Question:"
_CALCULATION = re.compile(r"<<.*?>>")  # notes of a calculator, which no model should write


class Gsm8k(Jsonl):
    """Questions with worked answers that end with `#### NUMBER`, and worked examples in the
    prompt.
    """

    dataset: str = option("openai/gsm8k", "hub id or folder of a dataset, unless task.file is set")
    subset: str | None = option("main", "subset of the dataset; null: its only subset")
    prompt_key: str = option("question", "key or column of the question")
    reference_key: str = option("answer", "key or column of the worked answer")
    num_fewshot: int = option(4, "number of worked examples in the prompt", ge=0)
    train_file: str | None = option(
        None,
        "file of the worked examples and of calibration examples, with task.file; without"
        " task.file they are the split train of the dataset",
    )
    max_new_tokens: int = option(
        320, "maximum answer length in tokens, unless decoding.max_new_tokens is set", ge=1
    )
    metrics: tuple[str, ...] = metrics_option("number_match")

    def examples(self) -> list[Example]:
        """Return all questions, without those that are worked examples."""
        worked = {example.source for example in self._worked()}
        return [example for example in super().examples() if example.source not in worked]

    def held_out(self) -> Self | None:
        """Return the training questions; None if they are evaluated."""
        train = self._train()
        return None if train in (None, self) else train

    def template_fields(self) -> Mapping[str, str]:
        """Return the worked examples as text."""
        texts = [
            f"{QUESTION} {example.source}\nAnswer: {example.reference}\n\n"
            for example in self._worked()
        ]
        return {"worked_examples": "".join(texts)}

    def hypothesis(self, text: str) -> str:
        """Return the output before a further question, which a model may invent."""
        answer = text.strip().removeprefix(QUESTION).split(QUESTION)[0]
        return super().hypothesis(answer.strip())

    def _train(self) -> Self | None:
        if self.file:
            return self.replace(file=self.train_file) if self.train_file else None
        if self.train_file:
            raise UsageError("expected task.file beside task.train_file, got none; set both")
        return self.replace(split=TRAIN)

    def _worked(self) -> Sequence[Example]:
        if not self.num_fewshot:
            return []
        train = self._train()
        if train is None:
            raise UsageError(
                f"task.num_fewshot={self.num_fewshot} requires worked examples, got no file of"
                " them; set task.train_file=<jsonl with question and answer>, or"
                " task.num_fewshot=0"
            )
        return _read(train.replace(num_fewshot=0).model_dump_json())[: self.num_fewshot]

    def _examples(self, rows: Sequence[Table], origin: str) -> list[Example]:
        """Convert rows to examples, without the calculator's notes."""
        return [
            replace(example, reference=_CALCULATION.sub("", example.reference))
            for example in super()._examples(rows, origin)
        ]


@functools.cache
def _read(task: str) -> Sequence[Example]:
    """Return the examples of a task in JSON; a dataset takes seconds to load."""
    return Gsm8k.model_validate_json(task).examples()
