import pytest
from report_rows import configured, not_applicable, small_sweep, sweep_row, two_depths

from ulskip_cli.report import tables
from ulskip_cli.report.rows import Group
from ulskip_cli.report.verdicts import compare, lead, winners


def names(winner):
    return [name for name, _ in winner.points]


def found(rows, gate=0.9):
    return {winner.title: winner for winner in winners(Group("", rows), gate)}


def test_without_a_full_model_there_is_no_judgement():
    assert found([sweep_row(vs_baseline={})]) == found([sweep_row("full")]) == {}


def test_winners_are_named_among_points_that_pass():
    best = found(small_sweep(unified_3=28.5))
    assert names(best["fastest at batch 1"]) == ["unified 3x"]
    assert names(best["best BLEU at target 2x"]) == ["unified 2x"]
    strict = found(small_sweep(), 0.99)["fastest at batch 8"]
    assert strict.points == [] and "no point keeps 99%" in strict.line()
    rows = [sweep_row("full"), sweep_row(), not_applicable(batch=1)]
    assert all(names(winner) == ["unified 2x"] for winner in found(rows).values())


def test_a_speed_of_too_few_timed_pairs_wins_nothing():
    rows = small_sweep(batches=(1,), unified_3=28.5)
    fastest, *_ = found([row.replace(speedup_interval_coverage=0.0) for row in rows]).values()
    assert fastest.points == [] and "enough timed pairs" in fastest.line()


def test_points_that_the_intervals_do_not_separate_are_a_tie():
    best = found(small_sweep(batches=(1,), unified_3=28.5, top_skip_3=28.4))
    assert names(best["fastest at batch 1"]) == ["unified 3x", "top_skip 3x"]
    assert len(best["best BLEU at target 3x"].points) == 2
    assert len(best["best BLEU at target 2x"].points) == 1


@pytest.mark.parametrize("speedup", [1.01, 0.8])
def test_a_point_whose_speedup_may_be_1_or_less_wins_nothing(speedup):
    rows = [sweep_row("full"), sweep_row(bleu=30.0, speedup=speedup)]
    winners = found(rows).values()
    assert not any(winner.points for winner in winners)
    assert all("no measurable gain" in winner.note for winner in winners)
    faster = sweep_row(target=3.0, bleu=28.5)
    assert names(found([*rows, faster])["fastest at batch 1"]) == ["unified 3x"]
    assert lead(rows) == [
        "fastest at batch 1: no measurable gain: no point that keeps the score is faster than full."
    ]


def untested_loss(bleu, **p_values):
    """A record that keeps a share of 30.0 BLEU whose interval includes 90%."""
    ends = {"delta_low": bleu - 34, "delta_high": bleu - 26}
    bleus = {"full": 30.0, "delta": bleu - 30, **ends, "p_value": p_values.get("bleu", 0.3)}
    chrf = {**bleus, "full": 52.0, "p_value": p_values.get("chrf", 0.3)}
    return sweep_row(bleu=bleu, vs_baseline={"bleu": bleus, "chrf": chrf})


def test_a_point_without_a_significant_loss_in_any_metric_wins():
    for row, wins in (
        (untested_loss(28.0), True),
        (untested_loss(28.0, chrf=0.01), False),
        (untested_loss(26.0), False),  # below 90%
    ):
        fastest = found([sweep_row("full"), row])["fastest at batch 1"]
        assert bool(fastest.points) is wins
    assert "no significant loss" in found([untested_loss(28.0)])["fastest at batch 1"].line()


def test_a_point_with_the_speed_of_another_depth_than_its_quality_wins_nothing():
    row = two_depths()
    assert found([sweep_row("full"), row]) == {}
    same = row.replace(evaluated_mean_kept_layers=4.1)
    assert names(found([sweep_row("full"), same])["fastest at batch 1"]) == ["skip_decode 2x"]


@pytest.mark.parametrize(
    "more", [{"bleu": 27.3}, {"vs_baseline": {}}, {"num_examples": 4}], ids=str
)
def test_a_point_whose_interval_may_not_pass_wins_nothing(more):
    rows = [sweep_row("full"), sweep_row(**{"bleu": 29.0, **more})]
    assert [winner.points for winner in found(rows).values()] == [[], []]


@pytest.mark.parametrize(("limit", "advises"), [(None, False), (20, True), (30, False)])
def test_more_examples_are_advised_only_where_a_limit_left_some_out(limit, advises):
    rows = [sweep_row("full"), sweep_row(bleu=27.3, config={"limit": limit} if limit else {})]
    assert {"use more examples" in winner.note for winner in found(rows).values()} == {advises}


def test_a_sweep_is_told_by_its_winners():
    first, second = lead(small_sweep(unified_3=28.5))
    assert first.startswith("fastest at batch 1: unified 3x, 2.70x (2.68 to 2.72")
    assert "batch 8" in second
    assert lead([sweep_row(vs_baseline={})])[0].startswith("unified keeps")


def against(new, old):
    return compare(new, old, 0.15, 0.9)


def test_points_are_matched_by_what_they_are():
    old = [row.replace(id=f"old {row.id}") for row in small_sweep()]
    new = [*small_sweep(unified_2=25.0), sweep_row("custom"), not_applicable()]
    found = against(new, old[:-1])
    assert len(found.pairs) == len(old) - 1
    assert (found.only_old, found.only_new) == (0, 2)
    pair = next(pair for pair in found.pairs if pair.new.id == "unified-2-1")
    assert (pair.old.bleu, pair.quality.value, pair.speedup.value) == (29.0, -4.0, 1.0)


def test_what_the_sides_have_nothing_of_in_common_is_what_is_compared():
    other = [configured(row, model={"name": "n"}, seed=2) for row in small_sweep()]
    found = against(other, small_sweep())
    assert [key.name for key in found.differs] == ["model", "seed"]
    assert len(found.pairs) == len(other)
    assert "model, seed" in found.section("Against x").note


def test_a_star_stands_where_the_interval_leaves_out_no_difference():
    found = against(small_sweep(unified_2=25.0), small_sweep())
    text = tables.markdown(found.section("Against x"))
    assert "| unified | 2 | 1 | 29.00 | 25.00 | -4.00* |" in text
    assert "| unified | 3 | 1 | 27.50 | 27.50 | +0.00 |" in text


def test_every_pair_has_verdicts():
    worse = [
        record.replace(measured_speedup=0.5, measured_speedup_low=0.4, measured_speedup_high=0.6)
        for record in small_sweep()
    ]
    same, slower = (
        against(new, small_sweep(unified_2=20.5)).pairs[-1] for new in (small_sweep(), worse)
    )
    assert (same.keeps, same.is_faster, same.verdict) == ("does not hold", "holds", "tie")
    assert slower.is_faster == slower.verdict == "does not hold"
