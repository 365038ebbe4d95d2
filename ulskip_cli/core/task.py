"""The interface of tasks: examples, their prompts, and the metrics that score answers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Self

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.options import Choice, option

_AUTO = "auto"
CHAT = "chat"


@dataclass(frozen=True)
class Example:
    """A source text and the reference that a hypothesis is compared with."""

    id: str
    source: str
    reference: str  # empty if there is none; all examples of a task have one, or none has
    test: str = ""  # program that fails if the code of an answer before it is wrong

    @property
    def texts(self) -> tuple[str, str]:
        """Source and reference, which identify an example in another file."""
        return self.source, self.reference

    def plain(self) -> dict[str, str]:
        """Return the values, JSON-ready, without an empty `test`."""
        return {key: text for key, text in asdict(self).items() if text or key != "test"}


@dataclass(frozen=True)
class Template:
    """The formats of prompts, with `{source}` and the task's fields, and of responses, with
    `{reference}` and `{source}`.
    """

    prompt_format: str  # text that the model reads
    response_format: str  # text that it should write
    # prompt and response are a user and an assistant message in the model's chat template
    chat: bool = False
    # further fields of the task, such as language names
    fields: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, example: Example) -> str:
        """Return the text that the model reads."""
        return _fill(self.prompt_format, {"source": example.source, **self.fields})

    def response(self, example: Example) -> str:
        """Return what training and the decode loss expect, without EOS; empty without a
        reference.
        """
        fields = {"reference": example.reference, "source": example.source}
        text = _fill(self.response_format, fields)
        return text if example.reference else ""


@dataclass(frozen=True)
class Scoring:
    """The metrics of a task and their settings."""

    metrics: tuple[str, ...]  # names in `tasks.metrics.METRICS`
    target_language: str | None = None  # of the answers; selects sacrebleu's tokenizer
    allow_code: bool = False  # run the code of answers


class Task(Choice):
    """Examples, their prompts, and the metrics that score the answers.

    A subclass defines `examples` and `data`.
    """

    max_new_tokens: ClassVar[int] = 128  # of an answer, unless the configuration has another

    subset: str | None = option(None, "subset of the dataset; null: its only subset")
    split: str = option("test", "split of the dataset, such as train, validation or test")
    metrics: tuple[str, ...] = option(("rouge",), "names of metrics")
    template: str = option(
        _AUTO, "key of templates; auto: chat for models with a chat template, else the first key"
    )
    templates: dict[str, dict[str, str]] = option(
        {}, "prompt templates by name, each with prompt and response"
    )
    prompt: str | None = option(
        None, "prompt with {source} that replaces the template's; null: the template's"
    )
    response: str | None = option(
        None, "answer with {reference} that replaces the template's; null: the template's"
    )

    @property
    def may_truncate_source(self) -> bool:
        """True if the end of a source may be dropped so that the prompt fits the context."""
        return False

    @property
    @abstractmethod
    def data(self) -> str:
        """Name of the data in rows and tables."""

    @property
    def location(self) -> str:
        """The place of the examples, by which data are compared."""
        return f"{self.data} {self.subset} {self.split}"

    @abstractmethod
    def examples(self) -> list[Example]:
        """Return all examples in a fixed order."""

    def held_out(self) -> Self | None:
        """Return a task with examples that no run evaluates, or None."""
        return None

    def template_fields(self) -> Mapping[str, str]:
        """Return the values of the task's own template fields."""
        return {}

    def template_for(self, has_chat: bool) -> Template:
        """Return the template for a model; raise UsageError if it is invalid."""
        name = self._template_name(has_chat)
        texts = dict(self.templates.get(name, {}))
        options = {"prompt": self.prompt, "response": self.response}
        required = {"prompt": "{source}", "response": "{reference}"}
        for key, field_name in required.items():
            option_text = options[key]
            if option_text is not None:
                texts[key] = option_text
            text = texts.get(key, "")
            if field_name not in text:
                raise UsageError(
                    f"expected {field_name} in task.{key} or task.templates.{name}.{key}, got"
                    f" {text[:80]!r}"
                )
        return Template(texts["prompt"], texts["response"], name == CHAT, self.template_fields())

    def _template_name(self, has_chat: bool) -> str:
        """Return the key of the template, for `auto` that of chat or the first one; `auto` itself
        for a task without templates, whose texts are the options prompt and response.
        """
        names, name = list(self.templates), self.template
        require_choice("task.template", name, [_AUTO, *names])
        if name == _AUTO and names:
            name = CHAT if has_chat and CHAT in names else names[0]
        if name == CHAT and not has_chat:
            others = ", ".join(key for key in names if key != CHAT)
            raise UsageError(
                "task.template=chat: the model's tokenizer has no chat template; use"
                f" {others} or auto"
            )
        return name

    def hypothesis(self, text: str) -> str:
        """Extract the answer from a model's output."""
        return text.strip()

    def scoring(self) -> Scoring:
        """Return the metrics and their settings."""
        return Scoring(self.metrics)


def check_references(examples: Sequence[Example], use: str) -> None:
    """Raise UsageError if examples lack references, which `use` requires."""
    if not all(example.reference for example in examples):
        raise UsageError(
            f"{use} requires references, but these prompts have none; add them to every example"
            " (with task=jsonl under the key task.reference_key)"
        )


def _fill(text: str, fields: Mapping[str, str]) -> str:
    """Fill the fields of a template; raise UsageError for unknown fields, and for other braces."""
    try:
        return text.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in fields)
        raise UsageError(
            f"expected only the fields {known} in a template, got {text[:80]!r} ({error}); write"
            " other braces as {{ and }}"
        ) from None
