import json

import pytest
from needs import shared_data

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics import Answers

TRAIN = [
    {"question": f"Is it {i}?", "answer": f"It is <<{i}={i}>>{i}.\n#### {i}"} for i in range(5)
]
TEST = [{"question": "How many?", "answer": "There are 7.\n#### 7"}]


@pytest.fixture
def overrides(tmp_path):
    files = {}
    for key, rows in {"file": TEST, "train_file": TRAIN}.items():
        files[key] = tmp_path / f"{key}.jsonl"
        files[key].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["task=gsm8k", *(f"task.{key}={file}" for key, file in files.items())]


def test_the_prompt_begins_with_worked_examples_of_the_training_data(overrides):
    task = compose([*overrides, "task.num_fewshot=2"]).task
    (example,) = task.examples()
    template = task.template_for(False)
    assert template.prompt(example) == (
        "Question: Is it 0?\nAnswer: It is 0.\n#### 0\n\n"
        "Question: Is it 1?\nAnswer: It is 1.\n#### 1\n\n"
        "Question: How many?\nAnswer:"
    )
    assert template.response(example) == " There are 7.\n#### 7"
    assert "Question: Is it 0?" in task.template_for(True).prompt(example)
    assert task.hypothesis(" It is 7.\n\nQuestion: And 8?\nAnswer: 8") == "It is 7."
    assert task.hypothesis("Question: How many?\nAnswer: 7") == "How many?\nAnswer: 7"
    assert task.replace(first_line=True).hypothesis("It is 7.\nSo 8.") == "It is 7."


def test_calibration_uses_the_training_data_without_the_worked_examples(overrides):
    held_out = compose([*overrides, "task.num_fewshot=2"]).task.held_out()
    assert [example.source for example in held_out.examples()] == [
        "Is it 2?",
        "Is it 3?",
        "Is it 4?",
    ]
    assert held_out.held_out() is None


def test_worked_examples_require_a_file(overrides):
    with pytest.raises(UsageError, match=r"task.file beside task.train_file"):
        compose([overrides[0], overrides[2]]).task.examples()
    with pytest.raises(UsageError, match=r"num_fewshot=4.*task.train_file.*task.num_fewshot=0"):
        compose(overrides[:2]).task.examples()
    assert compose([*overrides[:2], "task.num_fewshot=0"]).task.examples()[0].reference == (
        "There are 7.\n#### 7"
    )


@pytest.mark.slow
def test_all_answers_of_the_real_questions_match():
    test, train = shared_data("gsm8k/test.jsonl.gz"), shared_data("gsm8k/train.jsonl.gz")
    task = compose(["task=gsm8k", f"task.file={test}", f"task.train_file={train}"]).task
    references = [example.reference for example in task.examples()]
    assert not any("<<" in text for text in references)
    answers = Answers([task.hypothesis(text) for text in references], references, references)
    assert metrics.compute_scores(task.scoring(), answers).values == {"number_match": 100.0}
