import gzip
import hashlib
import json

import pytest

from ulskip_cli.core.config import compose, preset
from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.cnn_dm import SAMPLES, CnnDm

SAMPLE_SHA256 = "8886677757f9f903c440fa4a0e781bd33a18946448eeccc229dfb5b96d210366"
ROWS = [
    {"id": "a", "article": "It rained all day in Bonn.", "highlights": "Rain in Bonn .\nAll day ."},
    {"id": "b", "article": "x", "highlights": "y"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_the_sample_is_frozen():
    assert hashlib.sha256(SAMPLES["sample"].read_bytes()).hexdigest() == SAMPLE_SHA256
    examples = CnnDm().examples()
    assert len(examples) >= 30
    assert len({example.id for example in examples}) == len(examples)
    assert all(200 <= len(example.source.split()) <= 400 for example in examples)
    assert all(len(example.reference.split("\n")) in (2, 3) for example in examples)


def test_it_comes_with_a_model_that_can_summarize_unless_another_is_named():
    assert compose(["task=cnn_dm"]).model.name == "smollm2-135m"
    assert compose(["task=cnn_dm", "model=tiny"]).model.name == "tiny"
    assert compose(["task=cnn_dm", "model.path=some/model"]).model.path == "some/model"
    assert compose(["task=cnn_dm"]).decoding.max_new_tokens == 128


def test_articles_come_in_order_and_are_truncated_when_long(file):
    assert [example.id for example in CnnDm(file=str(file)).examples()] == ["a", "b"]
    assert CnnDm(file=str(file), max_article_words=3).examples()[0].source == "It rained all"
    assert CnnDm(file=str(file)).examples()[0].source == ROWS[0]["article"]
    assert CnnDm(file=str(file)).data == "articles.jsonl"


def test_a_gzipped_file_is_read_as_well(file, tmp_path):
    packed = tmp_path / "articles.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert CnnDm(file=str(packed)).examples() == CnnDm(file=str(file)).examples()


def test_a_folder_is_read_like_a_hub_dataset(tmp_path):
    (tmp_path / "validation.jsonl").write_text('{"document": "long", "summary": "short"}\n')
    task = CnnDm(dataset=str(tmp_path), article_key="document", highlights_key="summary")
    assert (task.examples()[0].source, task.examples()[0].reference) == ("long", "short")


def test_the_instruction_follows_the_article(file):
    task = compose(["task=cnn_dm", f"task.file={file}", "task.max_article_words=2"]).task
    example = task.examples()[0]
    assert task.template_for(False).prompt(example) == "It rained\nSummarize the article above:"
    assert task.template_for(False).response(example) == " Rain in Bonn .\nAll day ."
    assert task.template_for(True).chat
    assert task.hypothesis(" Two\nlines \n") == "Two\nlines"
    assert task.scoring().metrics == ("rouge",)
    assert task.may_truncate_source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"bad\.jsonl"),
        ('{"id": 1}\n', "row 1: .*article and highlights.*id"),
        ("nonsense\n", "line 1"),
        ('{"id": 1, "article": 5, "highlights": "x"}\n', "row 1"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        CnnDm(file=str(path)).examples()


def test_bad_settings_are_refused():
    with pytest.raises(UsageError, match=r"nowhere\.jsonl"):
        CnnDm(file="nowhere.jsonl").examples()
    with pytest.raises(UsageError, match=r"'cnn'.*task\.file"):
        CnnDm(dataset="cnn").examples()
    with pytest.raises(UsageError, match=r"max_article_words.*0"):
        preset("task", "cnn_dm", {"max_article_words": 0})
