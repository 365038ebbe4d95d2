import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.config import compose_training
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Template
from ulskip_cli.tasks.encoding import EncodedExample, PromptFormatter
from ulskip_cli.training import data

PLAIN = Template("{source}", "{reference}")


def test_a_model_that_chats_learns_in_its_chat_format(tokenizer, monkeypatch):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    texts = data.load_training_texts(compose_training(["limit=2"]), tokenizer)
    for prompt, response in texts.train:
        assert prompt.startswith("<user>Translate the following text")
        assert response.startswith("<assistant>") and response.endswith("<eos>")
    example = texts.formatter.tokenize(texts.train)[0]
    assert example.response_ids.count(tokenizer.eos_token_id) == 1


def test_articles_lose_their_end_to_fit_where_translations_are_left_out(tokenizer):
    settings = ["task=cnn_dm", "model=tiny", "limit=4", "train.max_length=600"]
    texts = data.load_training_texts(compose_training(settings), tokenizer)
    pairs = data.TokenPairs(texts.formatter.tokenize(texts.train), 600)
    assert (len(pairs), pairs.num_too_long) == (4, 0)
    assert max(pairs.lengths()) <= 600
    assert all(prompt.endswith("\nSummarize the article above:") for prompt, _ in texts.train)


def test_validation_is_the_task_with_changes(tokenizer, tmp_path):
    for name, text in (("a", "eins\nzwei\n"), ("b", "one\ntwo\n")):
        (tmp_path / name).write_text(text)
    files = f"source_file:{tmp_path}/a,reference_file:{tmp_path}/b"
    changes = f"train.validation={{dataset:files,{files},limit:1}}"
    texts = data.load_training_texts(compose_training(["limit=2", changes]), tokenizer)
    assert texts.validation == [("eins\nTranslate German to English:", " one")]
    assert len(texts.train) == 2


def test_validation_needs_references(tokenizer, tmp_path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.txt").write_text("a\nb\n")
    files = ["task=jsonl", f"task.file={tmp_path}/train.txt", "train.responses=own"]
    validation = f"train.validation={{file: {tmp_path}/validation.txt}}"
    with pytest.raises(UsageError, match=r"^train\.validation: .*references"):
        data.load_training_texts(compose_training([*files, validation]), tokenizer)


def test_long_examples_are_left_out_and_counted(tokenizer):
    texts = [("a b c", " a"), ("the cat sat on the mat", " der Hund schläft im Haus")]
    pairs = data.TokenPairs(PromptFormatter(PLAIN, tokenizer).tokenize(texts), max_length=8)
    assert (len(pairs), pairs.num_too_long) == (1, 1)
    assert pairs[0].response_ids[-1] == tokenizer.eos_token_id
    with pytest.raises(UsageError, match=r"train\.max_length=2"):
        data.TokenPairs(pairs, max_length=2)


def test_padding_is_masked_and_has_no_label():
    examples = [EncodedExample([5, 6], [7, 1]), EncodedExample([5], [8, 9, 1])]
    batch = data.PairCollator(pad_token_id=0)(examples)
    assert batch["prompt_ids"].tolist() == [[5, 6], [0, 5]]
    assert batch["prompt_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["response_ids"].tolist() == [[7, 1, 0], [8, 9, 1]]
    assert batch["labels"].tolist() == [[7, 1, -100], [8, 9, 1]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_is_a_permutation_that_follows_from_seed_and_epoch(lengths, batch_size, epoch):
    orders = []
    for _ in range(2):
        sampler = data.SimilarLengthSampler(lengths, batch_size, seed=3, epoch=lambda: epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(len(lengths)))


def test_an_offset_leaves_out_the_first_examples(tokenizer):
    words = (["limit=10"], ["offset=4", "limit=6"])
    ten, six = (data.load_training_texts(compose_training(one), tokenizer).train for one in words)
    assert six == ten[4:]
