import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.encoding import PromptFormatter, encode, pad_token_id, padded
from ulskip_cli.tasks.example import Example
from ulskip_cli.tasks.prompts import Template

PLAIN = Template("{source}\nSummarize:", " {reference}")
CHAT_FORMAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if brief %}!{% endif %}{% endif %}"
)
WORDS = Example("7", "the cat sat on the mat and the dog sleeps", "cats")


def test_padding_sides():
    left, left_mask = padded([[1, 2, 3], [4]], 0, left=True)
    right, right_mask = padded([[1, 2, 3], [4]], 0, left=False)
    assert left.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert right.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert left_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_plain_texts_decode_to_themselves_and_end_with_the_end_token(tokenizer):
    phrasing = PromptFormatter(PLAIN)
    (one,) = phrasing.tokens(tokenizer, [phrasing.texts(Example("0", "Hund im Haus", "a dog"))])
    assert tokenizer.decode(one.prompt_ids) == "Hund im Haus\nSummarize:"
    assert tokenizer.decode(one.response_ids[:-1]) == " a dog"
    assert one.response_ids[-1] == tokenizer.eos_token_id
    assert pad_token_id(tokenizer) == tokenizer.pad_token_id


def test_a_chat_response_is_what_the_format_puts_behind_its_prompt(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT_FORMAT)
    phrasing = PromptFormatter(Template("Say {source}", "{reference}", chat=True), tokenizer)
    assert phrasing.texts(Example("0", "cat", "Katze")) == ("<user>Say cat<eos>\n<assistant>", "Katze<eos>")
    (one,) = phrasing.tokens(tokenizer, [phrasing.texts(Example("0", "cat", "Katze"))])
    assert one.response_ids.count(tokenizer.eos_token_id) == 1  # the format's own, none is added
    assert one.prompt_ids.count(tokenizer.eos_token_id) == 1


def test_a_format_whose_answer_does_not_continue_the_prompt_still_gets_an_end(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT_FORMAT)
    phrasing = PromptFormatter(Template("{source}", "{reference}", chat=True), tokenizer, {"brief": True})
    assert phrasing.texts(Example("0", "cat", "Katze")) == ("<user>cat<eos>\n<assistant>!", "Katze<eos>")


def test_a_broken_chat_format_is_one_line(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('only three turns') }}")
    phrasing = PromptFormatter(Template("{source}", "{reference}", chat=True), tokenizer)
    with pytest.raises(UsageError, match=r"chat format fails.*task\.template=plain"):
        phrasing.texts(WORDS)


@given(st.integers(24, 60))
def test_a_long_source_loses_its_end_and_the_instruction_never(tokenizer, context):
    phrasing = PromptFormatter(PLAIN)
    (whole,) = encode(phrasing, tokenizer, [WORDS], None, 4, True)
    (one,) = encode(phrasing, tokenizer, [WORDS], context, 4, True)
    text = tokenizer.decode(one.prompt_ids)
    assert len(one.prompt_ids) + 4 <= context
    assert text.endswith("\nSummarize:")
    beginning = text.removesuffix("\nSummarize:")
    assert WORDS.source.startswith(beginning)
    assert one.cut == (one.prompt_ids != whole.prompt_ids)
    if one.cut:
        assert WORDS.source[len(beginning)] == " "  # whole words
        assert len(one.prompt_ids) > context - 4 - 16  # and as many as fit


def test_a_source_without_spaces_is_cut_between_characters(tokenizer):
    example = Example("0", "x" * 50, "y")
    (one,) = encode(PromptFormatter(PLAIN), tokenizer, [example], 40, 4, True)
    assert one.cut
    assert len(one.prompt_ids) == 36


def test_what_may_not_be_cut_is_refused_with_its_lengths(tokenizer):
    with pytest.raises(UsageError, match=r"example 7: its prompt of \d+ tokens and 4 new ones exceed .* of 20"):
        encode(PromptFormatter(PLAIN), tokenizer, [WORDS], 20, 4, False)
    with pytest.raises(UsageError, match="the 2 tokens that are left for its prompt"):  # not even the instruction fits
        encode(PromptFormatter(PLAIN), tokenizer, [WORDS], 6, 4, True)


def test_a_response_ends_with_the_context(tokenizer):
    example = Example("0", "cat", "the dog sleeps on the mat in the house")
    (whole,) = encode(PromptFormatter(PLAIN), tokenizer, [example], None, 4, False)
    (one,) = encode(PromptFormatter(PLAIN), tokenizer, [example], len(whole.prompt_ids) + 5, 4, False)
    assert one.response_ids == whole.response_ids[:5]
    assert not one.cut
