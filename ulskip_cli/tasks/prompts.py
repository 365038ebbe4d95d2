"""The choice of a template, which turns an example into a prompt: two format strings with named
fields.
"""

from collections.abc import Mapping

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.task import AUTO, Template

CHAT = "chat"
Formats = Mapping[str, Mapping[str, str]]


def choose_template(
    formats: Formats,
    name: str,
    has_chat: bool,
    prompt: str | None,
    response: str | None,
    fields: Mapping[str, str],
) -> Template:
    """Choose a template; raise UsageError if it is invalid. `auto` is `chat` for chat models,
    otherwise the first format.
    """
    default = CHAT if has_chat and CHAT in formats else next(iter(formats), AUTO)
    chosen = default if name == AUTO else require_choice("task.template", name, [AUTO, *formats])
    if chosen == CHAT and not has_chat:
        others = ", ".join(key for key in formats if key != CHAT)
        raise UsageError(
            f"task.template=chat: the model's tokenizer has no chat template; use {others} or auto"
        )
    texts = formats.get(chosen, {})
    if not {"prompt", "response"} <= texts.keys():
        raise UsageError(
            f"expected prompt and response in task.templates.{chosen}, got"
            f" {', '.join(texts) or 'nothing'}"
        )
    prompt_format = texts["prompt"] if prompt is None else prompt
    response_format = texts["response"] if response is None else response
    for key, text, field_name in (
        ("prompt", prompt_format, "{source}"),
        ("response", response_format, "{reference}"),
    ):
        if field_name not in text:
            raise UsageError(
                f"expected {field_name} in the template's {key} (task.{key}), got {text[:80]!r}"
            )
    return Template(prompt_format, response_format, chosen == CHAT, fields)
