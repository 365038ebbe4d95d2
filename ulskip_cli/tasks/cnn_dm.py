"""Summarization of news: articles, highlights, ROUGE."""

import json
from dataclasses import dataclass
from pathlib import Path

from ulskip_cli.errors import UsageError
from ulskip_cli.metrics import summarization
from ulskip_cli.metrics.scores import Scores
from ulskip_cli.tasks.examples import Example
from ulskip_cli.tasks.template import Template
from ulskip_cli.tasks.textfile import read_text


@dataclass(frozen=True)
class CnnDm:
    """Articles and their highlights.

    Attributes:
        file: one JSON object a line with `id`, `article` and `highlights` (one highlight a line), plain or gzipped.
        max_article_words: longer articles lose their end; None: they are read whole.
        stemmer: whether ROUGE stems words.
        prompt: template of what the model reads.
        response: template of what it should write.
    """

    file: str = ""
    max_article_words: int | None = None
    stemmer: bool = True
    prompt: str = ""
    response: str = ""

    def examples(self) -> list[Example]:
        """All articles of the file, in its order."""
        if not self.file:
            raise UsageError("task=cnn_dm expects task.file=<path>: one JSON object a line with id, article and highlights")
        path = Path(self.file)
        rows = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            try:
                row = json.loads(line)
                article = " ".join(row["article"].split()[: self.max_article_words])
                if not article or not row["highlights"].strip():
                    raise ValueError("an empty text")
                rows.append(Example(str(row["id"]), article, row["highlights"]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                expected = "expected a JSON object with id and the texts article and highlights"
                raise UsageError(f"{path}, line {number}: {expected}, got {line[:60]!r}") from error
        if not rows:
            raise UsageError(f"{path} is empty; expected one article a line")
        return rows

    def prompt_for(self, example: Example) -> str:
        """What the model reads."""
        return Template(self.prompt, self.response).prompt(example)

    def response_for(self, example: Example) -> str:
        """What it should write, the reference in the template's form."""
        return Template(self.prompt, self.response).response(example)

    def hypothesis(self, text: str) -> str:
        """The summary in a model's output, all of it."""
        return text.strip()

    def score(self, hypotheses: list[str], references: list[str], full: list[str] | None = None) -> Scores:
        """ROUGE, and with the full model's hypotheses a paired comparison."""
        return summarization.score(hypotheses, references, full, self.stemmer)
