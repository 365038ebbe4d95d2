import pytest
from report_rows import not_applicable, small_sweep, sweep_row, write_folder

from ulskip_cli.report.rows import Group, grouped
from ulskip_cli.report.winners import lead, winners


def test_without_a_full_model_there_is_no_judgement():
    assert winners(Group("", [sweep_row(vs_baseline={})]), 0.9) == []
    assert winners(Group("", [sweep_row("full")]), 0.9) == []


def test_winners_are_named_among_what_passes():
    found = {one.title: one for one in winners(Group("", small_sweep(unified_3=28.5)), 0.9)}
    assert found["fastest at batch 1"].names == ["unified 3x"]
    assert found["best BLEU at 2x"].names == ["unified 2x"]
    assert (
        found["best BLEU at 2x"].names == ["unified 2x"] and "only" in found["best BLEU at 2x"].note
    )
    strict = {one.title: one for one in winners(Group("", small_sweep()), 0.99)}
    assert strict["fastest at batch 8"].records == []
    assert "99%" in strict["fastest at batch 8"].note


def test_a_speed_of_too_few_timed_pairs_ties_with_the_fastest():
    rows = [
        row.replace(speedup_interval_coverage=0.0)
        for row in small_sweep(batches=(1,), unified_3=28.5)
    ]
    fastest, *_ = winners(Group("", rows), 0.9)
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


def test_a_target_at_which_nothing_passes_is_told():
    (group,) = grouped(small_sweep(unified_3=10.0))
    found = {one.title: one for one in winners(group, 0.9)}["best BLEU at 3x"]
    assert found.names == [] and "90%" in found.note and "BLEU" in found.note


@pytest.mark.parametrize(
    "more", [{"bleu": 27.3}, {"vs_baseline": {}}, {"num_examples": 4}], ids=str
)
def test_a_point_whose_interval_may_not_pass_wins_nothing(more):
    rows = [sweep_row("full"), sweep_row(**{"bleu": 29.0, **more})]
    assert [one.records for one in winners(Group("", rows), 0.9)] == [[], []]


def test_a_share_of_a_low_bleu_is_called_so(tmp_path, ulskip):
    low = {"full": 4.0, "delta": 0.0, "delta_low": -0.1, "delta_high": 0.1, "p_value": 0.9}
    rows = [sweep_row("full").replace(bleu=4.0), sweep_row(bleu=4.0, vs_baseline={"bleu": low})]
    assert all("4.0" in one.note for one in winners(Group("", rows), 0.9) if one.records)
    code, _, err = ulskip("report", write_folder(tmp_path / "x", rows), "--no-plots")
    assert (code, "4.0" in err) == (0, True)
    code, _, err = ulskip("report", write_folder(tmp_path / "y", small_sweep()), "--no-plots")
    assert (code, err) == (0, "")


def test_a_sweep_is_told_by_its_winners():
    first, second = lead(small_sweep(unified_3=28.5))
    assert (
        first.startswith("fastest at batch 1: unified 3x, 2.70x (2.68 to 2.72")
        and "batch 8" in second
    )
    assert lead([sweep_row(vs_baseline={})])[0].startswith("unified keeps")
