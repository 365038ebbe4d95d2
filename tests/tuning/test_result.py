from types import SimpleNamespace

import pytest
from report_rows import sweep_row

from ulskip_cli.core.config import compose, compose_tuning
from ulskip_cli.experiments.statistics import shares
from ulskip_cli.tuning.result import Alternative, TuneResult, best_alternative

Q4 = "engine=llama_cpp_q4_0"


def result(wish, row, *alternatives):
    chosen = SimpleNamespace(
        trial=SimpleNamespace(kept_layers=(0, 2, 5), candidate="unified", adapter=None, patch=None)
    )
    request = SimpleNamespace(config=compose_tuning([wish]), num_layers=6, overrides=[wish])
    best = best_alternative(alternatives, request.config)
    return TuneResult(request, chosen, row, (), None, 1.0, alternatives, best)


def alternative(label, speedup, num_same=100, margin=0.02, bleu=29.8):
    """Return an alternative whose 100 answers have this score."""
    row = sweep_row("unified", 1.0, speedup=speedup, margin=margin, num_examples=100, bleu=bleu)
    config = compose(["decoding=prompt_lookup", "batch_size=1"])
    candidate = SimpleNamespace(label=label, config=config)
    return Alternative(candidate, row, num_same, shares([row], 0.9).get(row.key))


@pytest.mark.parametrize(("units", "words"), [(3, "surely met"), (2, "met, but not surely")])
def test_a_speedup_is_surely_met_only_with_enough_units_and_warnings_stay(units, words):
    warnings = ["unified: 2 CPUs were busy"]
    row = sweep_row(speedup=2.0, units=units, warnings=warnings)
    lines = result("speedup=1.5", row).lines()
    assert f"goal:     speedup=1.5 is {words}" in lines
    assert lines[-1] == "warning:  2 CPUs were busy"


def test_a_choice_without_a_measurable_gain_is_told_and_commands_name_model_and_task():
    lines = result("quality=0.9", sweep_row(speedup=1.08, margin=0.3)).lines()
    assert lines[0].startswith("use strategy=full")
    assert "no measurable gain" in lines[1] and "no measurable gain" in lines[3]
    assert any(line.startswith("no gain:") for line in lines)
    assert not any(
        line.startswith("no gain:") for line in result("speedup=1.5", sweep_row()).lines()
    )
    run, export = (
        next(line for line in lines if line.startswith(word)) for word in ("run", "export")
    )
    assert "model=tiny task=wmt" in run and "model=tiny task=wmt" in export


def test_the_best_alternative_that_loses_nothing_is_recommended_before_layers():
    same = alternative("decoding=prompt_lookup", 1.6)
    close = alternative("engine=llama_cpp_q8_0", 1.8, 97)
    worse = alternative(Q4, 2.5, 10, bleu=15.0)
    found = result("speedup=1.5", sweep_row(speedup=2.0), worse, close, same)
    assert found.recommended is same
    lines = found.lines()
    assert lines[0].startswith("use decoding=prompt_lookup with all layers: 1.60x")
    assert "the same answers" in lines[0]
    assert lines[1].startswith("command:") and "decoding=prompt_lookup" in lines[1]
    assert any(line.startswith("engine=llama_cpp_q4_0: 2.50x") for line in lines)
    assert any("97 of 100 answers are the same" in line for line in lines)
    assert result("speedup=1.7", sweep_row(speedup=2.0), worse, close, same).recommended is close


@pytest.mark.parametrize(
    ("wish", "speedup", "alternatives", "words"),
    [
        ("speedup=1.5", 2.0, [("decoding=prompt_lookup", 1.3)], "use the layers below: nothing"),
        ("speedup=1.5", 2.0, [(Q4, 2.5, 9, 0.02, 15.0)], "use the layers below: nothing"),
        ("speedup=1.5", 2.0, [(Q4, 2.5, 9, 0.02, 28.9)], "use the layers below: nothing"),
        ("quality=0.9", 2.0, [(Q4, 2.5, 9, 0.02, 28.9)], f"use {Q4}"),
        ("speedup=1.5", 2.0, [], "use the layers below"),
        ("speedup=1.5", 1.2, [], "nothing that was tried meets speedup=1.5"),
        ("speedup=1.5", 1.2, [("decoding=prompt_lookup", 1.6, 100, 0.9)], "nothing that was"),
        ("quality=0.9", 1.7, [("decoding=prompt_lookup", 1.5)], "use the layers below, which are"),
        ("quality=0.9", 1.2, [("decoding=prompt_lookup", 1.5)], "use decoding=prompt_lookup"),
        ("quality=0.9", 0.8, [], "use strategy=full"),
    ],
)
def test_layers_are_used_if_no_alternative_meets_the_request(wish, speedup, alternatives, words):
    given = [alternative(*values) for values in alternatives]
    found = result(wish, sweep_row(speedup=speedup), *given)
    assert found.lines()[0].startswith(words)
    assert (found.recommended is not None) is words.startswith(("use dec", "use eng"))
