"""Summarization of news: articles, highlights, ROUGE."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks import hubdata
from ulskip_cli.tasks.example import Example, from_rows
from ulskip_cli.tasks.metrics.scores import Scoring
from ulskip_cli.tasks.prompts import AUTO, Template, pick
from ulskip_cli.tasks.textfile import read_objects

ASSETS = Path(__file__).parent.parent / "assets"
SAMPLES = {"sample": ASSETS / "cnn_dm_sample.jsonl", "held_out": ASSETS / "cnn_dm_held_out.jsonl"}  # bundled, by dataset
CNN_DAILYMAIL = ("abisee/cnn_dailymail", "3.0.0")  # hub id and subset


@dataclass(frozen=True)
class CnnDm:
    """Articles and their highlights.

    Attributes:
        dataset: `sample` or `held_out` (bundled), `cnn_dailymail`, or any other dataset's hub id or folder.
        file: one JSON object a line, plain or gzipped.
        subset: of a hub dataset; None: the only one.
        split: of a hub dataset.
        article_key: where a row has its article.
        highlights_key: where a row has its highlights, one a line.
        max_article_words: longer articles lose their end; None: they are cut only where the model's context ends.
        max_new_tokens: length of an answer, the decoding preset's default.
        metrics: names of metrics.
        stemmer: whether ROUGE stems words.
        bertscore_model: see `Scoring`.
        template: which of `templates`, or `auto`.
        templates: prompt and response by name.
        prompt: instead of the template's.
        response: instead of the template's.
    """

    dataset: str = "sample"
    file: str | None = None
    subset: str | None = None
    split: str = "validation"
    article_key: str = "article"
    highlights_key: str = "highlights"
    max_article_words: int | None = None
    max_new_tokens: int = 128
    metrics: list[str] = field(default_factory=lambda: ["rouge"])
    stemmer: bool = True
    bertscore_model: str | None = None
    template: str = AUTO
    templates: dict[str, dict[str, str]] = field(default_factory=dict)
    prompt: str | None = None
    response: str | None = None

    @property
    def cuts_source(self) -> bool:
        """News says the most important first: an article may lose its end."""
        return True

    @property
    def data(self) -> str:
        """The file's or the dataset's name."""
        return Path(self.file).name if self.file else self.dataset

    def examples(self) -> list[Example]:
        """All articles, in their order."""
        if self.max_article_words is not None and self.max_article_words < 1:
            raise UsageError(f"expected task.max_article_words >= 1, got {self.max_article_words}")
        if self.file and self.dataset != "sample":
            raise UsageError(f"expected task.file or task.dataset, got both: {self.file} and {self.dataset}")
        if self.file or self.dataset in SAMPLES:
            path = Path(self.file).expanduser() if self.file else SAMPLES[self.dataset]
            rows, where = read_objects(path), str(path)
        elif self.dataset == "cnn_dailymail":
            name, subset = CNN_DAILYMAIL
            rows, where = hubdata.rows(name, self.subset or subset, self.split), name
        elif hubdata.is_hub_name(self.dataset):
            rows, where = hubdata.rows(self.dataset, self.subset, self.split), self.dataset
        else:
            known = "sample, cnn_dailymail, another hub id (owner/name) or a folder"
            raise UsageError(f"expected task.dataset to be {known}, got '{self.dataset}'; a file is given as task.file=<jsonl>")
        examples = from_rows(rows, self.article_key, self.highlights_key, where)
        if self.max_article_words is None:
            return examples
        return [replace(one, source=" ".join(one.source.split()[: self.max_article_words])) for one in examples]

    def held_out(self) -> "CnnDm | None":
        """What the bundled sample holds out."""
        return replace(self, dataset="held_out") if self.dataset == "sample" and not self.file else None

    def template_for(self, has_chat: bool) -> Template:
        """How an article is put to a model."""
        return pick(self.templates, self.template, has_chat, self.prompt, self.response, {})

    def hypothesis(self, text: str) -> str:
        """The summary in a model's output, all of it."""
        return text.strip()

    def scoring(self) -> Scoring:
        """ROUGE, unless other metrics are named."""
        return Scoring(tuple(self.metrics), stemmer=self.stemmer, bertscore_model=self.bertscore_model)
