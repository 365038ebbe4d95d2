import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Example
from ulskip_cli.tasks.prompts import Template, choose_template

EXAMPLE = Example("0", "Guten {Tag}", "Good day")
FORMATS = {
    "after": {"prompt": "{source}\nTo {language}:", "response": " {reference}"},
    "plain": {"prompt": "{source} =", "response": " {reference}"},
    "chat": {"prompt": "To {language}: {source}", "response": "{reference}"},
}
FIELDS = {"language": "English"}


def chosen(name, has_chat, prompt=None, response=None):
    return choose_template(FORMATS, name, has_chat, prompt, response, FIELDS)


def test_the_instruction_follows_the_input():
    template = chosen("after", False)
    assert template.prompt(EXAMPLE) == "Guten {Tag}\nTo English:"
    assert template.response(EXAMPLE) == " Good day"


def test_auto_is_chat_for_a_model_with_a_chat_template_and_else_the_first():
    assert chosen("auto", True).chat
    assert chosen("auto", False) == chosen("after", False)
    assert not chosen("plain", True).chat


def test_a_users_own_texts_replace_the_templates():
    assert chosen("auto", False, prompt="Say {source}").prompt(EXAMPLE) == "Say Guten {Tag}"
    assert chosen("auto", True, response="{reference}!").response(EXAMPLE) == "Good day!"


def test_chat_needs_a_chat_template():
    with pytest.raises(UsageError, match=r"no chat template.*after, plain"):
        chosen("chat", False)


def test_an_unknown_template_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"task\.template 'plan'.*'plain'"):
        chosen("plan", False)


def test_a_template_without_texts_is_refused():
    with pytest.raises(UsageError, match=r"task\.templates\.mine.*got prompt"):
        choose_template({"mine": {"prompt": "x"}}, "mine", False, None, None, {})


@pytest.mark.parametrize(
    ("key", "text"), [("prompt", ""), ("prompt", "no source"), ("response", "x")]
)
def test_a_template_without_its_field_is_refused(key, text):
    with pytest.raises(UsageError, match=rf"task\.{key}\b"):
        chosen("auto", False, **{key: text})


def test_an_unknown_field_is_named():
    with pytest.raises(UsageError, match=r"\{source\}.*\{text\}"):
        Template("{text}", "").prompt(EXAMPLE)
