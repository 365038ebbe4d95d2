import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.example import Example
from ulskip_cli.tasks.prompts import Template, pick

EXAMPLE = Example("0", "Guten {Tag}", "Good day")
FORMATS = {
    "after": {"prompt": "{source}\nTo {language}:", "response": " {reference}"},
    "plain": {"prompt": "{source} =", "response": " {reference}"},
    "chat": {"prompt": "To {language}: {source}", "response": "{reference}"},
}
FIELDS = {"language": "English"}


def picked(name, has_chat, prompt=None, response=None):
    return pick(FORMATS, name, has_chat, prompt, response, FIELDS)


def test_the_instruction_follows_the_input():
    template = picked("after", False)
    assert template.prompt(EXAMPLE) == "Guten {Tag}\nTo English:"
    assert template.response(EXAMPLE) == " Good day"


def test_auto_is_chat_for_those_who_can_and_the_first_for_others():
    assert picked("auto", True).chat
    assert picked("auto", False) == picked("after", False)
    assert not picked("plain", True).chat


def test_a_users_own_texts_replace_the_templates():
    assert picked("auto", False, prompt="Say {source}").prompt(EXAMPLE) == "Say Guten {Tag}"
    assert picked("auto", True, response="{reference}!").response(EXAMPLE) == "Good day!"


def test_chat_needs_a_model_that_can():
    with pytest.raises(UsageError, match=r"no chat template; choose after, plain or auto"):
        picked("chat", False)


def test_an_unknown_template_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"unknown task\.template 'plan'; did you mean 'plain'"):
        picked("plan", False)


def test_a_template_without_texts_is_refused():
    with pytest.raises(UsageError, match="to hold prompt and response, got prompt"):
        pick({"mine": {"prompt": "x"}}, "mine", False, None, None, {})


@pytest.mark.parametrize(("key", "text"), [("prompt", ""), ("prompt", "no source"), ("response", "x")])
def test_a_template_without_its_field_is_refused(key, text):
    with pytest.raises(UsageError, match=rf"in the template's {key} \(task\.{key}\), got"):
        picked("auto", False, **{key: text})


def test_an_unknown_field_is_named():
    with pytest.raises(UsageError, match=r"'text'.*\{source\}"):
        Template("{text}", "").prompt(EXAMPLE)
