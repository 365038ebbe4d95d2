import gzip
import json

import pytest

from ulskip_cli.errors import UsageError
from ulskip_cli.tasks.cnn_dm import CnnDm

ROWS = [
    {"id": "a", "article": "It rained all day in Bonn.", "highlights": "Rain in Bonn .\nAll day ."},
    {"id": "b", "article": "x", "highlights": "y"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_articles_come_in_order_and_lose_their_end_when_long(file):
    assert [example.id for example in CnnDm(str(file)).examples()] == ["a", "b"]
    assert CnnDm(str(file), max_article_words=3).examples()[0].source == "It rained all"
    assert CnnDm(str(file)).examples()[0].source == ROWS[0]["article"]


def test_a_gzipped_file_is_read_as_well(file, tmp_path):
    packed = tmp_path / "articles.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert CnnDm(str(packed)).examples() == CnnDm(str(file)).examples()


def test_the_instruction_is_never_cut(file):
    task = CnnDm(str(file), max_article_words=2, prompt="{source}\nSummarize:", response=" {reference}")
    example = task.examples()[0]
    assert task.prompt_for(example) == "It rained\nSummarize:"
    assert task.response_for(example) == " Rain in Bonn .\nAll day ."
    assert task.hypothesis(" Two\nlines \n") == "Two\nlines"


def test_scores_are_rouge(file):
    scores = CnnDm(str(file)).score(["Rain in Bonn ."], ["Rain in Bonn ."], ["Sun ."])
    assert scores.values["rouge1"] == 100.0
    assert scores.against_full["rouge1"]["delta"] == 100.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"id": 1}\n', "line 1: expected a JSON object"),
        ("nonsense\n", "line 1"),
        ('{"id": 1, "article": 5, "highlights": "x"}\n', "line 1"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        CnnDm(str(path)).examples()
