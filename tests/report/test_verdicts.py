import pytest
from report_rows import bench_row, compared, not_applicable, small_sweep, sweep_row, two_depths

from ulskip_cli.report.rows import Group
from ulskip_cli.report.verdicts import caveats, lead, winners


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


def test_a_speed_of_too_few_timed_units_wins_nothing():
    fastest, *_ = found([sweep_row("full", units=2), sweep_row(units=2)]).values()
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
    reason = "no measurable gain: no point that keeps the score is faster than full."
    assert lead(rows) == [f"fastest at batch 1: {reason}"]


def untested_loss(bleu, chrf_high=2.0):
    """A record that keeps a share of 30.0 BLEU whose interval includes 90%."""
    bleus = compared(30.0, bleu, 4.0)
    chrf = {**bleus, "full": 52.0, "delta_high": chrf_high}
    return sweep_row(bleu=bleu, vs_baseline={"bleu": bleus, "chrf": chrf})


def test_a_point_without_a_significant_loss_in_any_metric_wins():
    for row, wins in (
        (untested_loss(28.0), True),
        (untested_loss(28.0, chrf_high=-0.1), False),
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


@pytest.mark.parametrize("more", [{"bleu": 27.3}, {"num_examples": 4}], ids=str)
def test_a_point_whose_interval_may_not_pass_wins_nothing(more):
    rows = [sweep_row("full"), sweep_row(**{"bleu": 29.0, **more})]
    assert [winner.points for winner in found(rows).values()] == [[], []]


@pytest.mark.parametrize(("limit", "advises"), [(None, False), (20, True), (30, False)])
def test_more_examples_are_advised_only_where_a_limit_left_some_out(limit, advises):
    rows = [sweep_row("full"), sweep_row(bleu=27.3, config={"limit": limit} if limit else {})]
    assert {"use more examples" in winner.note for winner in found(rows).values()} == {advises}


def test_rows_of_several_machines_are_warned_of():
    rows = [sweep_row("full"), sweep_row()]
    assert not any("several machines" in text for text in caveats(Group("", rows)))
    facts = {"ulskip": "1", "packages": {"torch": "2", "transformers": "5"}, "threads": 2}
    machines = [{**facts, "instruction_set": chip} for chip in ("AVX2", "AVX512")]
    elsewhere = [row.replace(environment=facts) for row, facts in zip(rows, machines, strict=True)]
    (text,) = caveats(Group("", elsewhere))
    assert "AVX2; " in text and "AVX512)" in text


def test_a_sweep_is_told_by_its_winners():
    first, second = lead(small_sweep(unified_3=28.5))
    assert first.startswith("fastest at batch 1: unified 3x, 2.70x (2.68 to 2.72")
    assert "batch 8" in second
    assert lead([sweep_row(vs_baseline={})])[0].startswith("unified keeps")


def test_a_benchmark_is_led_by_the_most_tokens_with_a_gain_at_each_batch_size():
    unsure = bench_row(3.0, engine="llama_cpp", measured_speedup_low=0.7)
    assert "no measurable gain" in lead([unsure])[0]
    first, second = lead([unsure, bench_row(), bench_row(batch=8, rate=50), bench_row(batch=8)])
    assert first.startswith("fastest at batch 1: 190 tok/s in torch; unified keeps 6 of 12 layers")
    assert second.startswith("fastest at batch 8: 190 tok/s") and "decodes 1.90x as fast" in second
