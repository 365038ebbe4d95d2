from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Example, Template
from ulskip_cli.tasks.encoding import PromptFormatter, pad_token_id

PLAIN = Template("{source}\nSummarize:", " {reference}")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if brief %}!{% endif %}{% endif %}"
)
WORDS = Example("7", "the cat sat on the mat and the dog sleeps", "cats")


def test_plain_texts_decode_to_themselves_and_end_with_eos(tokenizer):
    formatter = PromptFormatter(PLAIN, tokenizer)
    texts = formatter.format(Example("0", "Hund im Haus", "a dog"))
    (one,) = formatter.tokenize([texts])
    assert tokenizer.decode(one.prompt_ids) == "Hund im Haus\nSummarize:"
    assert tokenizer.decode(one.response_ids[:-1]) == " a dog"
    assert one.response_ids[-1] == tokenizer.eos_token_id
    assert pad_token_id(tokenizer) == tokenizer.pad_token_id


@pytest.mark.parametrize(("settings", "mark"), [({}, ""), ({"brief": True}, "!")])
def test_a_chat_response_is_the_text_after_the_chat_prompt(tokenizer, monkeypatch, settings, mark):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT_TEMPLATE)
    template = Template("Say {source}", "{reference}", chat=True)
    formatter = PromptFormatter(template, tokenizer, settings)
    texts = formatter.format(Example("0", "cat", "Katze"))
    assert texts == (f"<user>Say cat<eos>\n<assistant>{mark}", "Katze<eos>")
    (one,) = formatter.tokenize([texts])
    # from the chat template, none is added
    assert one.response_ids.count(tokenizer.eos_token_id) == 1
    assert one.prompt_ids.count(tokenizer.eos_token_id) == 1


def test_a_failing_chat_template_suggests_a_plain_one(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('only three turns') }}")
    formatter = PromptFormatter(Template("{source}", "{reference}", chat=True), tokenizer)
    with pytest.raises(UsageError, match=r"only three turns.*task\.template=plain"):
        formatter.format(WORDS)


def test_a_source_that_begins_with_a_space_and_does_not_fit_is_refused(tokenizer):
    example = replace(WORDS, source=f" {WORDS.source}")
    with pytest.raises(UsageError, match="exceeds the 3 tokens"):
        PromptFormatter(PLAIN, tokenizer).truncate_source(example, 3)


@given(st.integers(24, 60))
def test_a_long_source_is_truncated_and_the_instruction_never(tokenizer, context):
    formatter = PromptFormatter(PLAIN, tokenizer)
    (whole,) = formatter.encode_within([WORDS], None, 4, True)
    (one,) = formatter.encode_within([WORDS], context, 4, True)
    text = tokenizer.decode(one.prompt_ids)
    assert len(one.prompt_ids) + 4 <= context
    assert text.endswith("\nSummarize:")
    beginning = text.removesuffix("\nSummarize:")
    assert WORDS.source.startswith(beginning)
    assert one.truncated == (one.prompt_ids != whole.prompt_ids)
    if one.truncated:
        assert WORDS.source[len(beginning)] == " "  # whole words
        assert len(one.prompt_ids) > context - 4 - 16  # and as many as fit


def test_a_prompt_that_may_not_be_truncated_is_refused_with_its_length(tokenizer):
    with pytest.raises(UsageError, match=r"example 7: .*\d+ tokens and 4 new .* 20"):
        PromptFormatter(PLAIN, tokenizer).encode_within([WORDS], 20, 4, False)
    # not even the instruction fits
    with pytest.raises(UsageError, match=r"example 7: .* 2 tokens.*max_new_tokens"):
        PromptFormatter(PLAIN, tokenizer).encode_within([WORDS], 6, 4, True)


def test_a_response_is_truncated_at_the_end_of_the_context(tokenizer):
    example = Example("0", "cat", "the dog sleeps on the mat in the house")
    formatter = PromptFormatter(PLAIN, tokenizer)
    (whole,) = formatter.encode_within([example], None, 4, False)
    (one,) = formatter.encode_within([example], len(whole.prompt_ids) + 5, 4, False)
    assert one.response_ids == whole.response_ids[:5]
    assert (one.truncated, one.truncated_response, whole.truncated_response) == (False, True, False)
