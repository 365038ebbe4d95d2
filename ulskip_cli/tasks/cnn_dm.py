"""News summarization: articles and their highlights, scored by ROUGE."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.options import option
from ulskip_cli.core.task import Example, Scoring, Task, Template
from ulskip_cli.tasks.loading import examples_from_rows, is_dataset, load_dataset_rows, read_jsonl
from ulskip_cli.tasks.prompts import choose_template

ASSETS = Path(__file__).parent.parent / "assets"
SAMPLES = {
    "sample": ASSETS / "cnn_dm_sample.jsonl",
    "held_out": ASSETS / "cnn_dm_held_out.jsonl",
}  # bundled, by dataset
CNN_DAILYMAIL = ("abisee/cnn_dailymail", "3.0.0")  # hub id and subset


class CnnDm(Task):
    """News articles to summarize, with their highlights as references."""

    dataset: str = option(
        "sample", "sample (bundled), cnn_dailymail (downloaded), or another hub id or folder"
    )
    file: str | None = option(
        None, "file with one JSON object per line, plain or .gz, instead of a dataset"
    )
    split: str = option("validation", "split of the dataset, such as train, validation or test")
    article_key: str = option("article", "key or column of the article")
    highlights_key: str = option(
        "highlights", "key or column of the highlights, the reference summary"
    )
    max_article_words: int | None = option(
        None, "words to which articles are truncated; null: only to fit the model's context", ge=1
    )
    stemmer: bool = option(True, "compare word stems in ROUGE")

    @property
    def may_truncate_source(self) -> bool:
        """True, because a news article has its most important facts first."""
        return True

    @property
    def data(self) -> str:
        """Name of the file or the dataset."""
        return Path(self.file).name if self.file else self.dataset

    def examples(self) -> list[Example]:
        """Return all articles in the order of the data."""
        if self.file and self.dataset != "sample":
            raise UsageError(
                f"expected task.file or task.dataset, got both: {self.file} and {self.dataset};"
                " set one"
            )
        rows, origin = self._rows()
        examples = examples_from_rows(rows, self.article_key, self.highlights_key, origin)
        if self.max_article_words is None:
            return examples
        return [
            replace(example, source=" ".join(example.source.split()[: self.max_article_words]))
            for example in examples
        ]

    def _rows(self) -> tuple[list[dict[str, Any]], str]:
        if self.file or self.dataset in SAMPLES:
            path = user_path(self.file, "task.file") if self.file else SAMPLES[self.dataset]
            return read_jsonl(path), str(path)
        if self.dataset == "cnn_dailymail":
            name, subset = CNN_DAILYMAIL
            return load_dataset_rows(name, self.subset or subset, self.split), name
        if is_dataset(self.dataset):
            return load_dataset_rows(self.dataset, self.subset, self.split), self.dataset
        known = "sample, cnn_dailymail, another hub id (owner/name) or a folder"
        raise UsageError(
            f"expected task.dataset to be {known}, got '{self.dataset}'; for a file use"
            " task.file=<jsonl>"
        )

    def held_out(self) -> Self | None:
        """Return the bundled held-out articles; None if the data is not the bundled sample."""
        return (
            self.replace(dataset="held_out") if self.dataset == "sample" and not self.file else None
        )

    def template_for(self, has_chat: bool) -> Template:
        """Return the summarization template."""
        return choose_template(
            self.templates, self.template, has_chat, self.prompt, self.response, {}
        )

    def hypothesis(self, text: str) -> str:
        """Return the whole output as the summary."""
        return text.strip()

    def scoring(self) -> Scoring:
        """Return the configured metrics, ROUGE by default."""
        return Scoring(self.metrics, stemmer=self.stemmer, bertscore_model=self.bertscore_model)
