import json
import textwrap

import pytest
from needs import shared_data

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.jsonl import HumanEval
from ulskip_cli.tasks.metrics import Answers

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


def test_a_run_is_refused_before_anything_loads_unless_code_is_allowed(task):
    overrides = ["task=humaneval", f"task.file={task.file}"]
    with pytest.raises(UsageError, match=r"task\.allow_code=true"):
        resolve(compose(overrides))
    assert resolve(compose([*overrides, "task.allow_code=true"])).run_id


@pytest.mark.slow
def test_all_solutions_of_the_real_problems_pass():
    file = shared_data("humaneval/HumanEval.jsonl.gz")
    task = compose(["task=humaneval", f"task.file={file}", "task.allow_code=true"]).task
    examples = task.examples()
    texts = [task.hypothesis(task.template_for(True).response(example)) for example in examples]
    bodies = [textwrap.indent("return None", "    ")] * len(examples)
    sources, tests = zip(*((example.source, example.test) for example in examples), strict=True)
    answers = Answers(bodies, texts, list(sources), texts, list(tests))
    scores = metrics.compute_scores(task.scoring(), answers)
    assert scores.values == {"pass_at_1": 0.0}
    assert scores.against_full["pass_at_1"]["full"] == 100.0
