"""Tasks of JSONL files or datasets: a user's own task, summaries of news, and Python functions."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Self

from pydantic import model_validator

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject, user_path
from ulskip_cli.core.options import option
from ulskip_cli.core.task import Example, Scoring, Task
from ulskip_cli.tasks.example_files import (
    examples_from_rows,
    is_dataset,
    load_dataset_rows,
    read_objects,
    read_text,
)
from ulskip_cli.tasks.metrics import metrics_option

ASSETS = Path(__file__).parent.parent / "assets"
SAMPLES = {
    "sample": ASSETS / "cnn_dm_sample.jsonl",
    "held_out": ASSETS / "cnn_dm_held_out.jsonl",
}  # bundled, by dataset
REFERENCE_KEY = "reference"
_CODE_BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


class Jsonl(Task):
    """Prompts, perhaps with references, in the rows of a JSONL file or a dataset, or the lines of a
    text file.
    """

    file: str | None = option(
        None,
        "file with one JSON object per line, or .txt with one prompt per line, plain or .gz,"
        " instead of task.dataset",
    )
    dataset: str | None = option(None, "hub id or folder of a dataset, instead of task.file")
    prompt_key: str = option("prompt", "key or column of the prompt")
    reference_key: str = option(
        REFERENCE_KEY, "key or column of the reference answer; prompts alone have no such key"
    )
    cut_source: bool = option(
        False, "truncate prompts that exceed the model's context; false: refuse them"
    )
    first_line: bool = option(False, "use only the first line of the output as the answer")
    target_language: str | None = option(None, "ISO 639-1 code of the answers' language, for BLEU")
    metrics: tuple[str, ...] = metrics_option("rouge")

    @model_validator(mode="after")
    def _check_language(self) -> Self:
        code = self.target_language or "en"
        if not (len(code) == 2 and code.isalpha() and code.islower()):  # BLEU would ignore it
            raise UsageError(
                f"expected task.target_language to be an ISO 639-1 code such as zh, got '{code}'"
            )
        return self

    @property
    def data(self) -> str:
        """Name of the file or the dataset."""
        return Path(self.file).name if self.file else str(self.dataset)

    @property
    def location(self) -> str:
        """The file or the dataset."""
        return str(Path(self.file).resolve()) if self.file else super().location

    @property
    def may_truncate_source(self) -> bool:
        """True if the option `cut_source` allows truncation of the source."""
        return self.cut_source

    def scoring(self) -> Scoring:
        """Return the metrics and the language of the answers."""
        return Scoring(self.metrics, self.target_language)

    def hypothesis(self, text: str) -> str:
        """Return the output or its first line."""
        return text.strip().split("\n")[0].strip() if self.first_line else text.strip()

    def examples(self) -> list[Example]:
        """Return all rows in the order of the data."""
        self._check_one_source()
        if self.file:
            path = user_path(self.file, "task.file")
            return self._examples(self._rows_of_file(path), str(path))
        name = str(self.dataset)
        if not is_dataset(name):
            raise UsageError(
                f"expected task.dataset to be a hub id (owner/name) or a folder, got '{name}'; for"
                " a file use task.file=<jsonl>"
            )
        return self._examples(load_dataset_rows(name, self.subset, self.split), name)

    def _check_one_source(self) -> None:
        """Raise UsageError for no file or dataset, and for both. The default dataset of a subclass
        gives way to a file.
        """
        default = type(self).model_fields["dataset"].default
        has_own_dataset = self.dataset is not None and self.dataset != default
        if self.file and has_own_dataset:
            given = f"both: {self.file} and {self.dataset}"
        elif self.file or self.dataset:
            return
        else:
            given = "neither"
        raise UsageError(
            "expected task.file=<jsonl with prompt and reference> or task.dataset=<hub id or"
            f" folder>, got {given}"
        )

    def _rows_of_file(self, path: Path) -> list[JsonObject]:
        """Read JSON objects, or the lines of a .txt file as prompts."""
        if not path.name.removesuffix(".gz").endswith(".txt"):
            return read_objects(path)
        lines = read_text(path).split("\n")
        return [{self.prompt_key: line} for line in lines if line.strip()]

    def _examples(self, rows: Sequence[JsonObject], origin: str) -> list[Example]:
        """Convert rows to examples; if no row has the default key of references, there are none."""
        is_optional = self.reference_key == REFERENCE_KEY
        has_references = not is_optional or any(REFERENCE_KEY in row for row in rows)
        key = self.reference_key if has_references else None
        return examples_from_rows(rows, self.prompt_key, key, origin)


class CnnDm(Jsonl):
    """News articles to summarize, with their highlights as references."""

    dataset: str = option(
        "sample",
        "sample (bundled), or a folder or hub id, e.g. abisee/cnn_dailymail with task.subset=3.0.0",
    )
    split: str = option("validation", "split of the dataset, such as train, validation or test")
    prompt_key: str = option("article", "key or column of the article")
    reference_key: str = option(
        "highlights", "key or column of the highlights, the reference summary"
    )
    # A news article has its most important facts first.
    cut_source: bool = option(
        True, "truncate articles that exceed the model's context; false: refuse them"
    )
    max_article_words: int | None = option(
        None, "words to which articles are truncated; null: only to fit the model's context", ge=1
    )

    def examples(self) -> list[Example]:
        """Return all articles in the order of the data."""
        task, sample, count = self, SAMPLES.get(self.dataset), self.max_article_words
        if sample:  # which is read as task.file, unless the user gave one
            task = self.replace(file=self.file or str(sample), dataset=None)
        articles = Jsonl.examples(task)
        if count is None:
            return articles
        return [
            replace(article, source=" ".join(article.source.split()[:count]))
            for article in articles
        ]

    def held_out(self) -> Self | None:
        """Return the bundled held-out articles; None for other data than the sample."""
        if self.file or self.dataset != "sample":
            return None
        return self.replace(dataset="held_out")


class HumanEval(Jsonl):
    """Beginnings of Python functions, with solutions as references, scored by running
    their tests.
    """

    max_new_tokens = 512  # the whole function, as a chat model writes it, has less

    dataset: str = option(
        "openai/openai_humaneval", "hub id or folder of a dataset, unless task.file is set"
    )
    reference_key: str = option("canonical_solution", "key or column of the solution")
    metrics: tuple[str, ...] = metrics_option("pass_at_1")
    allow_code: bool = option(
        False,
        "run the code of answers, with limits of time, memory and files, but no security boundary",
    )

    def scoring(self) -> Scoring:
        """Return the metrics, with the permission to run code."""
        return replace(super().scoring(), allow_code=self.allow_code)

    def _examples(self, rows: Sequence[JsonObject], origin: str) -> list[Example]:
        """Convert rows to examples with a test: the row's `test` defines `check`, which is called
        with the function that `entry_point` names.
        """
        examples = super()._examples(rows, origin)
        # The texts of both keys, checked like sources and references.
        tests = examples_from_rows(rows, "test", "entry_point", origin)
        return [
            replace(example, test=f"{test.source.strip()}\n\ncheck({test.reference})\n")
            for example, test in zip(examples, tests, strict=True)
        ]

    def hypothesis(self, text: str) -> str:
        """Return the code in an output: first indented lines, the body of the function; otherwise
        the first code block; without both, the whole output.
        """
        lines, block = text.strip("\n").split("\n"), _CODE_BLOCK.search(text)
        # Two spaces, because prose may begin with one; an indented ``` begins a block, too.
        is_indented = lines[0].startswith(("  ", "\t"))
        begins_with_body = is_indented and not lines[0].lstrip().startswith("```")
        if block and not begins_with_body:
            return block[1].rstrip()
        body = takewhile(lambda line: not line.strip() or line[0].isspace(), lines)
        return "\n".join(body).rstrip() or text.strip()
