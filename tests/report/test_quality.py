import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import not_applicable, small_sweep, sweep_row, write_folder

from ulskip_cli.report.quality import apart, primary, quality, winners
from ulskip_cli.report.rows import Group, grouped


def judged(row, gate=0.9):
    return quality(Group("", [sweep_row("full"), row]), gate)[id(row)]


def test_the_tasks_first_metric_decides():
    assert primary(small_sweep()) == "bleu"
    assert primary([sweep_row(config={"task": {"metrics": ["chrf", "bleu"]}})]) == "chrf"
    assert primary([sweep_row(config={}, bleu=None, chrf=None)]) == "decode_loss"
    assert primary([sweep_row(bleu=None, chrf=None, decode_loss=None)]) is None
    assert primary([sweep_row(config={"task": {"metrics": ["rouge"]}}, rougeL=10.0)]) == "rougeL"


@pytest.mark.parametrize(
    ("bleu", "margin", "word"),
    [(29.0, 0.02, "passes"), (27.1, 0.02, "passes?"), (26.9, 0.02, "below?"), (20.0, 0.02, "below")],
)
def test_a_point_passes_at_the_gates_share_and_surely_where_its_interval_does(bleu, margin, word):
    assert judged(sweep_row(bleu=bleu, margin=margin)).word == word


def test_where_lower_is_better_the_share_is_turned():
    bare = {"config": {}, "bleu": None, "chrf": None, "vs_baseline": {}}
    row = sweep_row(decode_loss=2.5) | bare
    own = quality(Group("", [sweep_row("full") | bare, row]), 0.9)[id(row)]
    assert (own.metric, own.share, own.word) == ("decode_loss", 0.8, "below?")


def test_without_a_full_model_there_is_no_judgement():
    assert quality(Group("", [sweep_row(vs_baseline={})]), 0.9) == {}
    assert winners(Group("", [sweep_row(vs_baseline={})]), 0.9) == []
    assert winners(Group("", [sweep_row("full")]), 0.9) == []


def test_winners_are_named_among_what_passes():
    found = {one.title: one for one in winners(Group("", small_sweep(unified_3=28.5)), 0.9)}
    assert found["fastest at batch 1"].names == ["unified 3x"]
    assert found["best BLEU at 2x"].names == ["unified 2x"]
    assert found["best BLEU at 2x"].names == ["unified 2x"] and "only" in found["best BLEU at 2x"].note
    strict = {one.title: one for one in winners(Group("", small_sweep()), 0.99)}
    assert strict["fastest at batch 8"].rows == []
    assert "99%" in strict["fastest at batch 8"].note


def test_a_speed_of_too_few_timed_pairs_ties_with_the_fastest():
    rows = [row | {"speedup_interval_coverage": 0.0} for row in small_sweep(batches=(1,), unified_3=28.5)]
    (fastest, *_) = winners(Group("", rows), 0.9)
    assert fastest.names == ["unified 3x", "unified 2x"]
    assert "raise speed.pairs" in fastest.note
    assert fastest.figures[0].startswith("2.70x (too few timed pairs for an interval, 7 pairs)")


def test_what_the_intervals_do_not_tell_apart_is_a_tie():
    rows = small_sweep(batches=(1,), unified_3=28.5, top_skip_3=28.4)
    found = {one.title: one for one in winners(Group("", rows), 0.9)}
    assert found["fastest at batch 1"].tie
    assert found["fastest at batch 1"].names == ["unified 3x", "top_skip 3x"]
    assert found["best BLEU at 3x"].tie
    assert not found["best BLEU at 2x"].tie


def test_a_winner_that_is_no_faster_than_full_is_called_so():
    rows = [sweep_row("full"), sweep_row(speedup=1.01)]
    assert winners(Group("", rows), 0.9)[0].note
    assert not winners(Group("", [sweep_row("full"), sweep_row()]), 0.9)[0].note


def test_points_that_came_to_nothing_win_nothing():
    rows = [sweep_row("full"), sweep_row(), not_applicable(batch=1)]
    assert all(one.names == ["unified 2x"] for one in winners(Group("", rows), 0.9))


@given(st.floats(1, 40), st.floats(1, 40), st.floats(0.001, 0.2))
def test_apart_is_symmetric_and_never_of_a_point_and_itself(one, other, margin):
    first, second = sweep_row(bleu=one, margin=margin), sweep_row(bleu=other, margin=margin)
    assert apart(first, second, "bleu") == apart(second, first, "bleu")
    assert not apart(first, first, "bleu")


def test_a_target_at_which_nothing_passes_is_told():
    (group,) = grouped(small_sweep(unified_3=10.0))
    found = {one.title: one for one in winners(group, 0.9)}["best BLEU at 3x"]
    assert found.names == [] and "90%" in found.note and "BLEU" in found.note


@pytest.mark.parametrize("more", [{"bleu": 27.3}, {"vs_baseline": {}}, {"num_examples": 4}], ids=str)
def test_a_point_whose_interval_may_not_pass_wins_nothing(more):
    rows = [sweep_row("full"), {**sweep_row(bleu=29.0), **sweep_row(bleu=more.get("bleu", 29.0)), **more}]
    assert judged(rows[1]).passes
    assert [one.rows for one in winners(Group("", rows), 0.9)] == [[], []]


def test_a_share_of_a_low_bleu_is_called_so(tmp_path, ulskip):
    low = {"full": 4.0, "delta": 0.0, "delta_low": -0.1, "delta_high": 0.1, "p_value": 0.9}
    rows = [sweep_row("full", bleu=4.0) | {"bleu": 4.0}, sweep_row(bleu=4.0, vs_baseline={"bleu": low})]
    assert all("4.0" in one.note for one in winners(Group("", rows), 0.9) if one.rows)
    code, _, err = ulskip("report", write_folder(tmp_path / "x", rows), "--no-plots")
    assert (code, "4.0" in err) == (0, True)
    code, _, err = ulskip("report", write_folder(tmp_path / "y", small_sweep()), "--no-plots")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(("metric", "score", "full"), [("bleu", 42.0, 30.0), ("bleu", 3.0, 0.2), ("decode_loss", 0.001, 2.0)])
def test_no_share_exceeds_what_the_metric_can_be(metric, score, full):
    compared = {"full": full, "delta": score - full, "delta_low": -1e3, "delta_high": 1e3, "p_value": 0.5}
    row = sweep_row(config={}, **{"bleu": None, "chrf": None, metric: score}) | {"vs_baseline": {metric: compared}}
    own = quality(Group("", [row]), 0.9)[id(row)]
    assert 0 <= own.low <= own.share <= own.high <= 10
    if metric == "bleu":
        assert own.high <= 100 / full


def test_no_share_is_negative():
    row = sweep_row(bleu=0.1, margin=0.2)
    own = quality(Group("", [sweep_row("full"), row]), 0.9)[id(row)]
    assert row["vs_baseline"]["bleu"]["delta_low"] < -30
    assert own.low == 0 and own.high > own.share > 0
