"""A user's own task without code: prompts and references from a file or dataset, and metrics by name."""

from dataclasses import dataclass, field
from pathlib import Path

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.loading import Example, examples_from_rows, load_dataset_rows, read_jsonl
from ulskip_cli.tasks.metrics.scores import Scoring
from ulskip_cli.tasks.prompts import AUTO, Template, choose_template


@dataclass(frozen=True)
class Jsonl:
    """Prompts and references from a JSONL file or a dataset."""

    file: str | None = None  # JSONL, plain or gzipped
    dataset: str | None = None  # hub id or folder, instead of `file`
    subset: str | None = None  # None: the only one
    split: str = "test"
    prompt_key: str = "prompt"
    reference_key: str = "reference"
    cut_source: bool = False  # truncate a prompt that exceeds the context, instead of refusing it
    first_line: bool = False  # the answer is the first line of the output
    max_new_tokens: int = 128  # for decoding presets that set none
    metrics: list[str] = field(default_factory=lambda: ["rouge"])
    target_language: str | None = None  # ISO 639-1 code of the answers, for BLEU's tokenizer and BERTScore
    tokenize: str | None = None
    stemmer: bool = True
    comet_model: str = Scoring.comet_model
    bertscore_model: str | None = None
    template: str = AUTO  # a key of `templates`, or auto
    templates: dict[str, dict[str, str]] = field(default_factory=dict)  # prompt and response by name
    prompt: str | None = None  # replaces the template's prompt; {source} is the row's prompt
    response: str | None = None  # replaces the template's response, with {reference}

    @property
    def may_truncate_source(self) -> bool:
        """Value of the `cut_source` key."""
        return self.cut_source

    @property
    def data(self) -> str:
        """Name of the file or the dataset."""
        return Path(self.file).name if self.file else str(self.dataset)

    def examples(self) -> list[Example]:
        """Return all rows in the order of the data."""
        if bool(self.file) == bool(self.dataset):
            raise UsageError(
                "task=jsonl expects one of task.file=<jsonl with prompt and reference> and task.dataset=<hub id or folder>"
            )
        origin = str(Path(self.file).expanduser() if self.file else self.dataset)
        rows = read_jsonl(Path(origin)) if self.file else load_dataset_rows(origin, self.subset, self.split)
        return examples_from_rows(rows, self.prompt_key, self.reference_key, origin)

    def held_out(self) -> None:
        """Return None: the task has no held-out examples."""
        return None

    def template_for(self, has_chat: bool) -> Template:
        """Return the template, by default the prompt itself."""
        return choose_template(self.templates, self.template, has_chat, self.prompt, self.response, {})

    def hypothesis(self, text: str) -> str:
        """Return the output or its first line."""
        return text.strip().split("\n")[0].strip() if self.first_line else text.strip()

    def scoring(self) -> Scoring:
        """Return the configured metrics."""
        return Scoring(
            tuple(self.metrics), self.target_language, self.tokenize, self.stemmer, self.comet_model, self.bertscore_model
        )
