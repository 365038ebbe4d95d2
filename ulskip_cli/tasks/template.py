"""How an example becomes a prompt: a template is data, two strings with named fields."""

from dataclasses import dataclass

from ulskip_cli.errors import UsageError
from ulskip_cli.tasks.examples import Example

# The paper's order: the input first, then what to do with it.
INSTRUCTION_AFTER_INPUT = ("{source}\nTranslate {source_language} to {target_language}:", " {reference}")


@dataclass(frozen=True)
class Template:
    """A prompt with `{source}` and the fields of its task, and a response with `{reference}`."""

    prompt_format: str
    response_format: str

    def prompt(self, example: Example, **fields: str) -> str:
        """What the model reads; a task may bring more fields, as translation does its languages."""
        return _fill(self.prompt_format, source=example.source, **fields)

    def response(self, example: Example) -> str:
        """What the model should write, as training and the decode loss see it; the end token follows."""
        return _fill(self.response_format, reference=example.reference)


def _fill(text: str, **fields: str) -> str:
    try:
        return text.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in fields)
        raise UsageError(f"bad template {text!r} ({error}); it may use {known}") from None
