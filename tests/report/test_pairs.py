from report_rows import configured, not_applicable, small_sweep, sweep_row

from ulskip_cli.experiments.statistics import FAILS, HOLDS, TIE, verdict
from ulskip_cli.report import tables
from ulskip_cli.report.pairs import ComparedPair, compare


def against(new, old):
    return compare(new, old, 0.9)


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
    assert found.differs == ["model", "seed"]
    assert len(found.pairs) == len(other)
    assert "model, seed" in found.section("Against x").note


def test_other_targets_and_batch_sizes_are_not_compared():
    old = [row for row in small_sweep() if row.target_speedup != 3 or row.label != "unified"]
    new = [configured(row, ratio=4.0) for row in old if row.label == "unified"]
    found = against(new, old)
    assert (found.pairs, found.only_old, found.only_new) == ([], len(old), len(new))


def test_rows_without_speed_are_compared_with_timed_ones():
    untimed = [configured(row, speed={"enabled": False}) for row in small_sweep()]
    assert len(against(untimed, small_sweep()).pairs) == len(untimed)


def test_a_star_stands_where_the_interval_leaves_out_no_difference():
    found = against(small_sweep(unified_2=25.0), small_sweep())
    text = tables.markdown(found.section("Against x"))
    assert "| unified | 2 | 1 | 29.00 | 25.00 | -4.00* |" in text
    assert "| unified | 3 | 1 | 27.50 | 27.50 | +0.00 |" in text


def test_every_pair_has_verdicts():
    slow = {"measured_speedup": 0.5, "measured_speedup_low": 0.4, "measured_speedup_high": 0.6}
    worse = [record.replace(**slow) for record in small_sweep()]
    full, *_, same = against(small_sweep(), small_sweep(unified_2=20.5)).section("x").cells
    assert same[-2:] == [FAILS, HOLDS]
    assert full[-2:] == ["–", "–"]  # a full model that was timed against itself
    assert against(worse, small_sweep()).section("x").cells[-1][-1] == FAILS


def test_a_point_without_a_target_can_lose():
    rows = [sweep_row("custom", speedup=speedup) for speedup in (1.8, 0.5)]
    old, slow = (configured(row, strategy={"layers": [0, 2, 5]}) for row in rows)
    assert against([slow], [old]).losses() == ["custom, batch 1: speed"]


def test_a_row_is_judged_beside_another_of_its_folder():
    fast, slow = sweep_row(speedup=2.0, bleu=20.0), sweep_row(speedup=1.5)
    for pair, faster, better in (
        (ComparedPair(fast, slow), HOLDS, FAILS),
        (ComparedPair(slow, fast), FAILS, HOLDS),
        (ComparedPair(fast, fast), TIE, TIE),
    ):
        assert (verdict(pair.speedup, 1.0), verdict(pair.quality)) == (faster, better)
