"""HumanEval: Python functions to complete, scored by running their tests."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from ulskip_cli.core.files import Table
from ulskip_cli.core.options import option
from ulskip_cli.core.task import Example, Scoring
from ulskip_cli.tasks.jsonl import Jsonl
from ulskip_cli.tasks.loading import examples_from_rows
from ulskip_cli.tasks.metrics import metrics_option

_BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEval(Jsonl):
    """Beginnings of Python functions, with solutions as references and with tests."""

    dataset: str = option(
        "openai/openai_humaneval", "hub id or folder of a dataset, unless task.file is set"
    )
    reference_key: str = option("canonical_solution", "key or column of the solution")
    # The whole function, as a chat model writes it, has less than 512 tokens.
    max_new_tokens: int = option(
        512, "maximum answer length in tokens, unless decoding.max_new_tokens is set", ge=1
    )
    metrics: tuple[str, ...] = metrics_option("pass_at_1")
    allow_code: bool = option(
        False,
        "run the code of answers, with limits of time, memory and files, but no security boundary",
    )

    def scoring(self) -> Scoring:
        """Return the metrics and their settings, with the permission to run code."""
        return replace(super().scoring(), allow_code=self.allow_code)

    def _examples(self, rows: Sequence[Table], origin: str) -> list[Example]:
        """Convert rows to examples with a test that calls `check`."""
        examples = super()._examples(rows, origin)
        tests = examples_from_rows(rows, "test", "entry_point", origin)
        return [
            replace(example, test=f"{test.source.strip()}\n\ncheck({test.reference})\n")
            for example, test in zip(examples, tests, strict=True)
        ]

    def hypothesis(self, text: str) -> str:
        """Return the first code block, or the indented lines at the beginning, which come first if
        the output begins with them; without both, the whole output.
        """
        lines = text.strip("\n").split("\n")
        body = takewhile(lambda line: not line.strip() or line[0].isspace(), lines)
        # prose may begin with one space
        block, is_code = _BLOCK.search(text), lines[0].startswith(("  ", "\t"))
        if block and (not is_code or lines[0].lstrip().startswith("```")):
            return block[1].rstrip()
        return "\n".join(body).rstrip() or text.strip()
