import pytest

from ulskip_cli.errors import UsageError
from ulskip_cli.tasks.examples import Example
from ulskip_cli.tasks.template import INSTRUCTION_AFTER_INPUT, Template

EXAMPLE = Example("0", "Guten {Tag}", "Good day")


def test_the_instruction_follows_the_input():
    template = Template(*INSTRUCTION_AFTER_INPUT)
    assert (
        template.prompt(EXAMPLE, source_language="German", target_language="English")
        == "Guten {Tag}\nTranslate German to English:"
    )
    assert template.response(EXAMPLE) == " Good day"


def test_an_unknown_field_is_named():
    with pytest.raises(UsageError, match=r"KeyError|'text'.*\{source\}"):
        Template("{text}", "").prompt(EXAMPLE, source_language="German", target_language="English")
