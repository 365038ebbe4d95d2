"""Fifty cases of benchmarks/fuzz.py, fixed by their seed, and its judgement of cases."""

import fuzz
from fuzz import problems
from fuzz_cases import Case, lines
from fuzz_cases import option as options_of
from fuzz_inputs import damaged_inputs

SEED, LINES, INPUTS = 1, 40, 10


def test_fifty_cases_end_as_they_should():
    with fuzz.running() as runner:
        cases = fuzz.draw(lines(), LINES, SEED)
        cases += fuzz.draw(damaged_inputs(fuzz.prepare(runner)), INPUTS, SEED)
        endings = [runner.run(case) for case in cases]
    found = [
        (list(problems(ending)), case.arguments, ending.err[-500:])
        for case, ending in zip(cases, endings, strict=True)
    ]
    assert len(found) == LINES + INPUTS
    assert [case for case in found if case[0]] == []
    assert {ending.code for ending in endings} >= {0, 2}


def test_a_case_that_hangs_or_dies_is_a_finding_and_the_next_case_runs(monkeypatch):
    with fuzz.running() as runner:
        assert runner.run(Case(("--version",))).code == 0
        monkeypatch.setattr(fuzz, "SECONDS", -1.0)
        assert runner.run(Case(("plan", "model=tiny"))).code is None
        monkeypatch.setattr(fuzz, "SECONDS", 30.0)
        assert runner.run(Case(("--version",))).code == 0


def test_lines_have_the_options_of_their_command():
    words = {word for option in fuzz.draw(options_of("report"), 60, SEED) for word in option}
    assert words >= {"--compare", "--gate", "--html"}
