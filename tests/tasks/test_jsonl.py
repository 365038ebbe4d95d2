import json

import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.jsonl import Jsonl


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "2 + 2 =", "reference": "4"},
        {"prompt": "3 + 3 =", "reference": "6", "id": "six"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_users_own_task(file):
    overrides = [
        "task=jsonl",
        f"task.file={file}",
        "task.metrics=[exact_match,chrf]",
        "task.first_line=true",
    ]
    task = compose(overrides).task
    examples = task.examples()
    assert [example.id for example in examples] == ["0", "six"]
    assert task.template_for(False).prompt(examples[0]) == "2 + 2 ="
    assert task.template_for(False).response(examples[0]) == " 4"
    assert task.template_for(True).prompt(examples[0]) == "2 + 2 ="
    assert task.hypothesis(" 4\n3 + 3") == "4"
    assert task.scoring().metrics == ("exact_match", "chrf")
    assert (task.data, task.may_truncate_source) == ("mine.jsonl", False)


def test_the_whole_output_is_the_answer_by_default(file):
    assert Jsonl(file=str(file)).hypothesis(" a\nb ") == "a\nb"


def test_other_keys_and_a_folder(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"q": "a", "a": "b"}\n')
    assert (
        Jsonl(dataset=str(tmp_path), prompt_key="q", reference_key="a").examples()[0].reference
        == "b"
    )


def test_bad_settings_are_refused(file):
    with pytest.raises(UsageError, match=r"task\.file="):
        Jsonl().examples()
    with pytest.raises(UsageError, match=r"task\.file="):
        Jsonl(file=str(file), dataset="a/b").examples()
    with pytest.raises(UsageError, match=r"row 1: .*q and reference.*prompt, reference"):
        Jsonl(file=str(file), prompt_key="q").examples()
