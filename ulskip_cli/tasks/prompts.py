"""Templates, which turn an example into a prompt: two format strings with named fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.tasks.loading import Example

AUTO, CHAT = "auto", "chat"
Formats = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Template:
    """A prompt with `{source}` and the task's own fields, and a response with `{reference}`."""

    prompt_format: str  # text that the model reads
    response_format: str  # text that it should write
    chat: bool = False  # prompt and response are a user and an assistant message in the model's chat template
    fields: Mapping[str, str] = field(default_factory=dict)  # further fields of the task, such as language names

    def prompt(self, example: Example) -> str:
        """Return the text that the model reads."""
        return _fill(self.prompt_format, {"source": example.source, **self.fields})

    def response(self, example: Example) -> str:
        """Return the text that training and the decode loss expect, without EOS."""
        return _fill(self.response_format, {"reference": example.reference})


def choose_template(
    formats: Formats, name: str, has_chat: bool, prompt: str | None, response: str | None, fields: Mapping[str, str]
) -> Template:
    """Choose a template; raise UsageError if it is invalid. `auto` is `chat` for chat models, otherwise the first format."""
    default = CHAT if has_chat and CHAT in formats else next(iter(formats), AUTO)
    chosen = default if name == AUTO else require_choice("task.template", name, [AUTO, *formats])
    if chosen == CHAT and not has_chat:
        others = ", ".join(key for key in formats if key != CHAT)
        raise UsageError(f"task.template=chat: the model's tokenizer has no chat template; use {others} or auto")
    texts = formats.get(chosen, {})
    if not {"prompt", "response"} <= texts.keys():
        raise UsageError(f"expected prompt and response in task.templates.{chosen}, got {', '.join(texts) or 'nothing'}")
    prompt_format = texts["prompt"] if prompt is None else prompt
    response_format = texts["response"] if response is None else response
    for key, text, field_name in (("prompt", prompt_format, "{source}"), ("response", response_format, "{reference}")):
        if field_name not in text:
            raise UsageError(f"expected {field_name} in the template's {key} (task.{key}), got {text[:80]!r}")
    return Template(prompt_format, response_format, chosen == CHAT, fields)


def _fill(text: str, fields: Mapping[str, str]) -> str:
    try:
        return text.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in fields)
        raise UsageError(
            f"expected only the fields {known} in a template, got {text[:80]!r} ({error}); write other braces as {{{{ and }}}}"
        ) from None
