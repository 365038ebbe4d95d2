"""Anybody's own task without code: prompts, references and metrics by name."""

from dataclasses import dataclass, field
from pathlib import Path

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks import hubdata
from ulskip_cli.tasks.example import Example, from_rows
from ulskip_cli.tasks.metrics.scores import Scoring
from ulskip_cli.tasks.prompts import AUTO, Template, pick
from ulskip_cli.tasks.textfile import read_objects


@dataclass(frozen=True)
class Jsonl:
    """Prompts and references, from a file or a dataset.

    Attributes:
        file: one JSON object a line, plain or gzipped.
        dataset: instead of a file, a dataset's hub id or folder.
        subset: of the dataset; None: the only one.
        split: of the dataset.
        prompt_key: where a row has what the model reads.
        reference_key: where a row has the right answer.
        cut_source: whether a prompt that exceeds the context loses its end; where not, it is an error.
        first_line: whether the answer is the output's first line, or all of it.
        max_new_tokens: length of an answer, the decoding preset's default.
        metrics: names of metrics.
        target_language: ISO 639-1 code of the answers, for BLEU's tokenizer and BERTScore.
        tokenize: see `Scoring`.
        stemmer: see `Scoring`.
        comet_model: see `Scoring`.
        bertscore_model: see `Scoring`.
        template: which of `templates`, or `auto`.
        templates: prompt and response by name.
        prompt: instead of the template's, with `{source}` for the row's prompt.
        response: instead of the template's, with `{reference}`.
    """

    file: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "test"
    prompt_key: str = "prompt"
    reference_key: str = "reference"
    cut_source: bool = False
    first_line: bool = False
    max_new_tokens: int = 128
    metrics: list[str] = field(default_factory=lambda: ["rouge"])
    target_language: str | None = None
    tokenize: str | None = None
    stemmer: bool = True
    comet_model: str = Scoring.comet_model
    bertscore_model: str | None = None
    template: str = AUTO
    templates: dict[str, dict[str, str]] = field(default_factory=dict)
    prompt: str | None = None
    response: str | None = None

    @property
    def cuts_source(self) -> bool:
        """As the configuration says."""
        return self.cut_source

    @property
    def data(self) -> str:
        """The file's or the dataset's name."""
        return Path(self.file).name if self.file else str(self.dataset)

    def examples(self) -> list[Example]:
        """All rows, in their order."""
        if bool(self.file) == bool(self.dataset):
            raise UsageError(
                "task=jsonl expects one of task.file=<jsonl with prompt and reference> and task.dataset=<hub id or folder>"
            )
        if self.file:
            path = Path(self.file).expanduser()
            return from_rows(read_objects(path), self.prompt_key, self.reference_key, str(path))
        name = str(self.dataset)
        return from_rows(hubdata.rows(name, self.subset, self.split), self.prompt_key, self.reference_key, name)

    def held_out(self) -> None:
        """There is one file only."""
        return None

    def template_for(self, has_chat: bool) -> Template:
        """How a prompt is put to a model."""
        return pick(self.templates, self.template, has_chat, self.prompt, self.response, {})

    def hypothesis(self, text: str) -> str:
        """The answer in a model's output."""
        return text.strip().split("\n")[0].strip() if self.first_line else text.strip()

    def scoring(self) -> Scoring:
        """The metrics that are named."""
        return Scoring(
            tuple(self.metrics), self.target_language, self.tokenize, self.stemmer, self.comet_model, self.bertscore_model
        )
