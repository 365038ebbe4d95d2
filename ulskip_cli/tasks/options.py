"""Options that all tasks share."""

from dataclasses import dataclass

from ulskip_cli.core.config_schema import option
from ulskip_cli.core.validation import check_fields
from ulskip_cli.tasks.prompts import AUTO


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Base of the tasks: options for the dataset, the metrics and the prompt."""

    subset: str | None = option(None, "subset of the dataset; null: its only subset")
    split: str = option("test", "split of the dataset, such as train, validation or test")
    max_new_tokens: int = option(128, "maximum answer length in tokens, unless decoding.max_new_tokens is set", minimum=1)
    metrics: list[str] = option(lambda: ["rouge"], "metrics: bleu, chrf, ter, rouge, exact_match, comet, bertscore")
    bertscore_model: str | None = option(None, "hub id or folder of BERTScore's model; null: the default for the language")
    template: str = option(AUTO, "key of templates; auto: chat for models with a chat template, else the first key")
    templates: dict[str, dict[str, str]] = option(dict, "prompt templates by name, each with prompt and response")
    prompt: str | None = option(None, "prompt with {source} that replaces the template's; null: the template's")
    response: str | None = option(None, "answer with {reference} that replaces the template's; null: the template's")

    def __post_init__(self) -> None:
        check_fields(self, "task.")
