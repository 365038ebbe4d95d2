"""A user's own task: prompts and references from a file or dataset, and metrics chosen by name."""

from pathlib import Path

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.options import option
from ulskip_cli.core.task import Example, Scoring, Task, Template
from ulskip_cli.tasks.loading import examples_from_rows, load_dataset_rows, read_jsonl
from ulskip_cli.tasks.prompts import choose_template


class Jsonl(Task):
    """Prompts and references from a JSONL file or a dataset."""

    file: str | None = option(
        None, "file with one JSON object per line, plain or .gz; null: use task.dataset"
    )
    dataset: str | None = option(None, "hub id or folder of a dataset; null: use task.file")
    prompt_key: str = option("prompt", "key or column of the prompt")
    reference_key: str = option("reference", "key or column of the reference answer")
    cut_source: bool = option(
        False, "truncate prompts that exceed the model's context; false: refuse them"
    )
    first_line: bool = option(False, "use only the first line of the output as the answer")
    target_language: str | None = option(
        None, "ISO 639-1 code of the answers' language, for BLEU and BERTScore"
    )
    tokenize: str | None = option(
        None, "sacrebleu's tokenizer for BLEU; null: its default for target_language"
    )
    stemmer: bool = option(True, "compare word stems in ROUGE")
    comet_model: str = option(Scoring.comet_model, "hub id or checkpoint file of COMET's model")

    @property
    def may_truncate_source(self) -> bool:
        """True if the option `cut_source` allows truncation of the source."""
        return self.cut_source

    @property
    def data(self) -> str:
        """Name of the file or the dataset."""
        return Path(self.file).name if self.file else str(self.dataset)

    def examples(self) -> list[Example]:
        """Return all rows in the order of the data."""
        if bool(self.file) == bool(self.dataset):
            given = f"both: {self.file} and {self.dataset}" if self.file else "neither"
            raise UsageError(
                "expected task.file=<jsonl with prompt and reference> or task.dataset=<hub id or"
                f" folder>, got {given}"
            )
        origin = str(user_path(self.file, "task.file") if self.file else self.dataset)
        rows = (
            read_jsonl(Path(origin))
            if self.file
            else load_dataset_rows(origin, self.subset, self.split)
        )
        return examples_from_rows(rows, self.prompt_key, self.reference_key, origin)

    def template_for(self, has_chat: bool) -> Template:
        """Return the template, by default the prompt itself."""
        return choose_template(
            self.templates, self.template, has_chat, self.prompt, self.response, {}
        )

    def hypothesis(self, text: str) -> str:
        """Return the output or its first line."""
        return text.strip().split("\n")[0].strip() if self.first_line else text.strip()

    def scoring(self) -> Scoring:
        """Return the configured metrics."""
        return Scoring(
            self.metrics,
            self.target_language,
            self.tokenize,
            self.stemmer,
            self.comet_model,
            self.bertscore_model,
        )
