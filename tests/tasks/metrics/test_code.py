import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Scoring
from ulskip_cli.tasks.metrics import ScoredTexts, code
from ulskip_cli.tasks.metrics.code import PassAt1, passes, program

SOURCE = 'from math import pi\n\n\ndef area(r):\n    """Area of a circle."""\n'
TEST = "assert round(area(1), 2) == 3.14"
RIGHT = [
    "    return pi * r * r",
    "return pi * r * r",
    "def area(r):\n    return helper(r)\n\n\ndef helper(r):\n    return pi * r * r",
    "import math\n\ndef area(r):\n    return math.pi * r * r",
    "square = r * r\n    return pi * square",  # the first line lost its indentation
    "   square = r * r\n    return pi * square",
]
WRONG = ["    return r", "", "I cannot", "    exit()", "def area(r):\n    exit(0)"]
WRONG.append("    import os; os._exit(0)")


def metric(allow_code):
    return PassAt1("pass_at_1", Scoring(("pass_at_1",), allow_code=allow_code))


def test_pass_at_1_is_the_share_of_answers_that_pass_and_is_compared_with_full():
    texts, full = [*RIGHT, *WRONG], [RIGHT[0]] * 12
    answers = ScoredTexts(texts, full, [SOURCE] * 12, full, [TEST] * 12)
    scores = metric(True).score(answers)
    assert scores.values == {"pass_at_1": 50.0}
    assert scores.against_full["pass_at_1"]["delta"] == -50.0
    assert scores.against_full["pass_at_1"]["delta_high"] < 0
    assert "Python 3" in scores.signatures["pass_at_1"]


def test_code_runs_only_if_it_is_allowed(monkeypatch):
    monkeypatch.setattr(code, "passes", lambda code: pytest.fail("code ran"))
    with pytest.raises(UsageError, match=r"task.allow_code=true .*--allow-code"):
        metric(False).score(ScoredTexts(["x"], ["x"], ["x"], tests=["x"]))


def test_answers_without_tests_are_refused():
    with pytest.raises(UsageError, match="under the key test"):
        metric(True).score(ScoredTexts(["x"], ["x"], ["x"]))


@pytest.mark.parametrize(
    "program",
    [
        "text = 'a' * 2**31",
        "open('file', 'w').write('a' * 2**21)",
        "while True: pass",
        "import time; time.sleep(60)",
    ],
    ids=["memory", "file", "cpu", "time"],
)
def test_a_program_ends_at_its_limits(program, monkeypatch):
    monkeypatch.setattr(code, "SECONDS", 1)
    assert not passes(program)


def test_a_program_sees_an_empty_folder_and_no_variables(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    checks = "import os\nassert os.listdir() == ['answer.py']\nassert 'SECRET' not in os.environ"
    assert passes(checks)


def test_a_main_block_of_an_answer_is_left_out():
    main = 'if __name__ == "__main__":\n    area(int(input()))\n'
    assert passes(program(SOURCE, f"{RIGHT[2]}\n{main}", TEST))


def test_a_function_without_a_docstring_may_be_defined_anew():
    assert passes(program("from math import pi\n\ndef area(r):", RIGHT[2], TEST))
    assert passes(program("from math import pi\n\ndef area(r):", RIGHT[0], TEST))
