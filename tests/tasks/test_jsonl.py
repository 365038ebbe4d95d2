import gzip
import hashlib
import json
import textwrap

import pytest
from needs import shared_data

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Example
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.jsonl import SAMPLES, CnnDm, HumanEval, Jsonl
from ulskip_cli.tasks.metrics import ScoredTexts

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


ROW = {
    "prompt": 'def inc(x):\n    """Add 1."""\n',
    "canonical_solution": "    return x + 1\n",
    "test": "\n\ndef check(candidate):\n    assert candidate(1) == 2\n",
    "entry_point": "inc",
}


@pytest.fixture
def task(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    return compose(["task=humaneval", f"task.file={file}", "task.allow_code=true"]).task


def test_a_problem_is_a_prompt_a_solution_and_a_test(task):
    (example,) = task.examples()
    assert example.test.endswith("assert candidate(1) == 2\n\ncheck(inc)\n")
    assert task.template_for(False).prompt(example) == ROW["prompt"]
    chat = task.template_for(True)
    assert chat.prompt(example).endswith(f"```python\n{ROW['prompt']}```")
    whole = ROW["prompt"] + ROW["canonical_solution"]
    assert chat.response(example) == f"```python\n{whole}```"
    assert task.scoring().metrics == ("pass_at_1",)


def test_the_answer_is_the_code_block_or_the_continuation():
    extract = HumanEval().hypothesis
    assert extract("Sure:\n```python\ndef f():\n    pass\n```\nDone.") == "def f():\n    pass"
    assert extract("```\n    cut off") == "    cut off"
    assert extract("    return 1\n\n\ndef g():\n    pass") == "    return 1"
    assert extract("def f():\n    return 1\n") == "def f():\n    return 1"
    assert extract("    return 1\n```\n\nThis returns 1.") == "    return 1"
    assert extract(" Here it is:\n```python\ndef f():\n    pass\n```") == "def f():\n    pass"


@pytest.mark.slow
def test_all_solutions_of_the_real_problems_pass():
    file = shared_data("humaneval/HumanEval.jsonl.gz")
    task = compose(["task=humaneval", f"task.file={file}", "task.allow_code=true"]).task
    examples = task.examples()
    texts = [task.hypothesis(task.template_for(True).response(example)) for example in examples]
    bodies = [textwrap.indent("return None", "    ")] * len(examples)
    sources, tests = zip(*((example.source, example.test) for example in examples), strict=True)
    answers = ScoredTexts(bodies, texts, list(sources), texts, list(tests))
    scores = metrics.compute_scores(task.scoring(), answers)
    assert scores.values == {"pass_at_1": 0.0}
    assert scores.against_full["pass_at_1"]["full"] == 100.0


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
