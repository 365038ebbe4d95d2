import gzip
import hashlib
import json

import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.jsonl import SAMPLES, CnnDm, Jsonl

SAMPLE_SHA256 = "8886677757f9f903c440fa4a0e781bd33a18946448eeccc229dfb5b96d210366"
ARTICLES = [
    {"id": "a", "article": "It rained all day in Bonn.", "highlights": "Rain in Bonn .\nAll day ."},
    {"id": "b", "article": "x", "highlights": "y"},
]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path):
    rows = [
        {"prompt": "2 + 2 =", "reference": "4"},
        {"prompt": "3 + 3 =", "reference": "6", "id": "six"},
    ]
    return written(tmp_path / "mine.jsonl", rows)


@pytest.fixture
def articles(tmp_path):
    return written(tmp_path / "articles.jsonl", ARTICLES)


def test_a_users_own_task(file):
    overrides = ["task.metrics=[exact_match,chrf]", "task.first_line=true"]
    task = compose(["task=jsonl", f"task.file={file}", *overrides]).task
    examples = task.examples()
    assert [example.id for example in examples] == ["0", "six"]
    assert task.template_for(False).prompt(examples[0]) == "2 + 2 ="
    assert task.template_for(False).response(examples[0]) == " 4"
    assert task.hypothesis(" 4\n3 + 3") == "4"
    assert Jsonl(file=file).hypothesis(" a\nb ") == "a\nb"
    assert task.scoring().metrics == ("exact_match", "chrf")
    assert (task.data, task.may_truncate_source) == ("mine.jsonl", False)


def test_prompts_need_no_references(tmp_path):
    rows = [{"prompt": "2 + 2 =", "topic": "sums"}, {"prompt": "3 + 3 ="}]
    (tmp_path / "lines.txt").write_text("2 + 2 =\n\n3 + 3 =\n")
    (tmp_path / "lines.txt.gz").write_bytes(gzip.compress(b"2 + 2 =\n3 + 3 ="))
    alone = Jsonl(file=written(tmp_path / "alone.jsonl", rows))
    lines = Jsonl(file=str(tmp_path / "lines.txt"))
    packed = Jsonl(file=str(tmp_path / "lines.txt.gz"), prompt_key="question")
    assert alone.examples() == lines.examples() == packed.examples()
    example = lines.examples()[1]
    assert (example.source, example.reference) == ("3 + 3 =", "")
    template = compose(["task=jsonl", "task.file=x"]).task.template_for(False)
    assert template.response(example) == ""


def test_a_reference_that_is_missing_in_one_row_or_under_a_given_key_is_refused(tmp_path):
    rows = [{"prompt": "2 + 2 =", "reference": "4"}, {"prompt": "3 + 3 ="}]
    some = Jsonl(file=written(tmp_path / "some.jsonl", rows))
    with pytest.raises(UsageError, match="row 2"):
        some.examples()
    with pytest.raises(UsageError, match="under answer"):
        some.replace(reference_key="answer").examples()


def test_the_sample_is_frozen():
    assert hashlib.sha256(SAMPLES["sample"].read_bytes()).hexdigest() == SAMPLE_SHA256
    examples = CnnDm().examples()
    assert len({example.id for example in examples}) == len(examples) >= 30
    held_out = CnnDm().held_out()
    assert held_out and not {*held_out.examples()} & {*examples}


def test_articles_are_read_truncated_and_scored(articles, tmp_path):
    assert CnnDm(file=articles).examples()[0].source == ARTICLES[0]["article"]
    packed = tmp_path / "articles.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "articles.jsonl").read_bytes()))
    assert CnnDm(file=str(packed)).examples() == CnnDm(file=articles).examples()
    chosen = compose(["task=cnn_dm", f"task.file={articles}", "task.max_article_words=2"])
    task, example = chosen.task, chosen.task.examples()[0]
    assert (chosen.model.name, chosen.answer_tokens) == ("smollm2-135m", 128)
    assert task.template_for(False).prompt(example) == "It rained\nSummarize the article above:"
    assert task.template_for(False).response(example) == " Rain in Bonn .\nAll day ."
    assert task.hypothesis(" Two\nlines \n") == "Two\nlines"
    assert (task.scoring().metrics, task.may_truncate_source) == (("rouge",), True)
    assert task.data == "articles.jsonl"


@pytest.mark.parametrize("code", ["zh-CN", "Chinese", "jpn", "ZH"])
def test_a_language_that_bleu_would_ignore_is_refused(code):
    with pytest.raises(UsageError, match=rf"ISO 639-1 .*'{code}'"):
        Jsonl(target_language=code)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Jsonl(), r"task\.file=.*neither"),
        (Jsonl(file="a", dataset="a/b"), r"task\.file=.*both"),
        (CnnDm(file="nowhere.jsonl"), r"nowhere\.jsonl"),
        (CnnDm(file="a", dataset="a/b"), "both"),
        (CnnDm(dataset="cnn"), r"'cnn'.*task\.file"),
    ],
)
def test_bad_settings_are_refused(task, message):
    with pytest.raises(UsageError, match=message):
        task.examples()
