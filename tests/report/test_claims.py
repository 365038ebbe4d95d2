import pytest
from report_rows import small_sweep, sweep_row

from ulskip_cli.report import claims, tables
from ulskip_cli.report.difference import FAILS, HOLDS, TIE, Scorer


def found(new, old=()):
    before = [row | {"folder": "results/old"} for row in old]
    return {claim.text: claim for claim in claims.Judge(0.9, Scorer()).judge(new, before)}


def test_the_papers_claims_are_judged_on_the_rows():
    own = found(small_sweep())
    claim = own["unified beats top_skip in BLEU at 2x"]
    assert claim.new.verdict == HOLDS
    assert claim.new.figures == "29.00 against 20.00, +9.00 (+7.59 to +10.41)"
    assert own["unified keeps 90% of full's BLEU at 2x"].new.verdict == HOLDS
    assert own["unified keeps 90% of full's BLEU at 3x"].new.verdict == TIE
    assert own["unified decodes faster than full at 3x"].new.verdict == HOLDS
    assert not [text for text in own if "before" in text]


def test_what_the_interval_holds_is_a_tie_and_the_contrary_does_not_hold():
    own = found(small_sweep(unified_2=20.2, unified_3=3.0))
    assert own["unified beats top_skip in BLEU at 2x"].new.verdict == TIE
    assert own["unified beats top_skip in BLEU at 3x"].new.verdict == FAILS
    assert own["unified keeps 90% of full's BLEU at 2x"].new.verdict == FAILS


def test_a_claim_shows_what_it_was_before():
    both = found(small_sweep(unified_2=20.2), small_sweep())
    claim = both["unified beats top_skip in BLEU at 2x"]
    assert (claim.new.verdict, claim.old.verdict) == (TIE, HOLDS)
    assert both["unified at 2x: BLEU as before"].new.verdict == FAILS
    assert both["top_skip at 2x: BLEU as before"].new.verdict == TIE


@pytest.mark.parametrize(("speedup", "verdict"), [(1.8, HOLDS), (1.9, HOLDS), (2.1, TIE), (2.6, FAILS), (1.2, FAILS)])
def test_a_speedup_is_repeated_within_the_tolerance(speedup, verdict):
    both = found([sweep_row("full"), sweep_row(speedup=speedup)], [sweep_row("full"), sweep_row(speedup=1.8)])
    assert both["unified at 2x: measured speedup within 15% of before"].new.verdict == verdict


def test_settings_that_the_other_side_lacks_have_no_claims_about_it():
    both = found(small_sweep(), [row | {"pair": "en-de"} for row in small_sweep()])
    assert all(claim.old is None and "before" not in claim.text for claim in both.values())


def test_claims_are_counted_and_tabled():
    own = list(found(small_sweep(unified_3=3.0), small_sweep()).values())
    assert "do not hold" in claims.summary(own)
    text = tables.markdown(claims.claims_section("Claims", own))
    assert "| claim | verdict | figures | verdict before | figures before |" in text


def test_a_share_without_an_interval_is_no_verdict():
    own = found([row | {"vs_baseline": {}} for row in small_sweep()])
    claim = own["unified keeps 90% of full's BLEU at 2x"].new
    assert (claim.verdict, claim.figures) == (TIE, "96.7% (no interval)")


@pytest.mark.parametrize(("coverage", "verdict"), [(0.0, TIE), (0.875, TIE), (0.9375, HOLDS), (None, HOLDS)])
def test_a_speed_of_too_few_timed_pairs_is_no_verdict(coverage, verdict):
    rows = [row | {"speedup_interval_coverage": coverage} for row in small_sweep()]
    both = found(rows, rows)
    assert both["unified decodes faster than full at 2x"].new.verdict == verdict
    assert both["unified at 2x: measured speedup within 15% of before"].new.verdict == verdict
    assert ("too few" in both["unified decodes faster than full at 2x"].new.figures) is (verdict == TIE)


def test_every_setting_is_held_against_its_own():
    both = [*small_sweep(), *(row | {"prompt_layers": "kept"} for row in small_sweep(unified_2=10.0))]
    judged = claims.Judge(0.9, Scorer()).judge(both, [row | {"folder": "results/old"} for row in both])
    again = [claim for claim in judged if claim.text == "unified at 2x: BLEU as before"]
    assert [claim.new.figures[:19] for claim in again] == ["29.00 against 29.00", "10.00 against 10.00"]


def test_several_settings_that_the_other_side_has_none_of_are_not_compared():
    old = [row | {"seed": seed, "folder": "results/old"} for seed in (2, 3) for row in small_sweep()]
    judged = claims.Judge(0.9, Scorer()).judge(small_sweep(), old)
    assert judged
    assert all(claim.old is None and "before" not in claim.text for claim in judged)


def test_scores_on_other_examples_are_neither_as_before_nor_other():
    bare = [row | {"vs_baseline": {}} for row in small_sweep()]
    assert "unified at 2x: BLEU as before" not in found(bare, [row | {"bleu": 1.0} for row in bare])
