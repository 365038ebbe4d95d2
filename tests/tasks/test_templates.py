import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Example
from ulskip_cli.tasks.jsonl import Jsonl

EXAMPLE = Example("0", "Guten {Tag}", "Good day")
FORMATS = {
    "after": {"prompt": "{source}\nTo English:", "response": " {reference}"},
    "plain": {"prompt": "{source} =", "response": " {reference}"},
    "chat": {"prompt": "To English: {source}", "response": "{reference}"},
    "half": {"prompt": "{source}"},
}


def chosen(has_chat, **options):
    return Jsonl(templates=FORMATS, **options).template_for(has_chat)


def test_auto_is_chat_for_a_model_with_a_chat_template_and_else_the_first():
    template = chosen(False)
    assert template.prompt(EXAMPLE) == "Guten {Tag}\nTo English:"
    assert template.response(EXAMPLE) == " Good day"
    assert chosen(True).chat and not chosen(True, template="plain").chat


def test_a_users_own_texts_replace_the_templates():
    assert chosen(False, prompt="Say {source}").prompt(EXAMPLE) == "Say Guten {Tag}"
    assert chosen(True, response="{reference}!").response(EXAMPLE) == "Good day!"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "chat"}, "no chat template.*after, plain"),
        ({"template": "plan"}, r"task\.template 'plan'.*'plain'"),
        ({"template": "half"}, r"task\.templates\.half\.response"),
        ({"prompt": "no source"}, r"task\.prompt\b"),
        ({"response": ""}, r"task\.response\b"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        chosen(False, **options)
