"""How an example becomes a prompt: a template is data, two strings with named fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.tasks.example import Example

AUTO, CHAT = "auto", "chat"
Formats = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Template:
    """A prompt with `{source}` and the fields of its task, and a response with `{reference}`.

    Attributes:
        prompt_format: of what the model reads.
        response_format: of what it should write.
        chat: whether the prompt is a user's turn and the response the assistant's, in the model's own chat format.
        fields: what a task brings besides the source, as translation does its languages.
    """

    prompt_format: str
    response_format: str
    chat: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, example: Example) -> str:
        """What the model reads."""
        return _fill(self.prompt_format, {"source": example.source, **self.fields})

    def response(self, example: Example) -> str:
        """What the model should write, as training and the decode loss see it; the end token follows."""
        return _fill(self.response_format, {"reference": example.reference})


def pick(
    formats: Formats, name: str, has_chat: bool, prompt: str | None, response: str | None, fields: Mapping[str, str]
) -> Template:
    """One of a task's templates.

    Args:
        formats: prompt and response by template name; the first is for models without a chat format.
        name: a key of `formats`, or `auto`: `chat` for a model that has a chat format.
        has_chat: whether the model has one.
        prompt: replaces the template's prompt.
        response: replaces its response.
        fields: see `Template`.

    Raises:
        UsageError: there is no such template, or the model cannot chat.
    """
    automatic = CHAT if has_chat and CHAT in formats else next(iter(formats), AUTO)
    chosen = automatic if name == AUTO else require_choice("task.template", name, [AUTO, *formats])
    if chosen == CHAT and not has_chat:
        others = ", ".join(key for key in formats if key != CHAT)
        raise UsageError(f"task.template=chat: the model's tokenizer has no chat template; choose {others} or auto")
    texts = formats.get(chosen, {})
    if not {"prompt", "response"} <= texts.keys():
        raise UsageError(f"expected task.templates.{chosen} to hold prompt and response, got {', '.join(texts) or 'nothing'}")
    asked, answered = texts["prompt"] if prompt is None else prompt, texts["response"] if response is None else response
    for key, text, field_name in (("prompt", asked, "{source}"), ("response", answered, "{reference}")):
        if field_name not in text:
            raise UsageError(f"expected {field_name} in the template's {key} (task.{key}), got {text!r}")
    return Template(asked, answered, chosen == CHAT, fields)


def _fill(text: str, fields: Mapping[str, str]) -> str:
    try:
        return text.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in fields)
        raise UsageError(f"bad template {text!r} ({error}); it may use {known}") from None
