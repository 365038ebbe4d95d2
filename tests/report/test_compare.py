from report_rows import not_applicable, small_sweep, sweep_row

from ulskip_cli.experiments.statistics import Scorer
from ulskip_cli.report import tables
from ulskip_cli.report.compare import compare, comparison_section


def against(new, old):
    return compare(new, old, Scorer(), 0.15, 0.9)


def test_points_are_matched_by_what_they_are():
    old = [row.replace(id=f"old {row.id}") for row in small_sweep()]
    new = [*small_sweep(unified_2=25.0), sweep_row("custom"), not_applicable()]
    found = against(new, old[:-1])
    assert len(found.pairs) == len(old) - 1
    assert (found.only_old, found.only_new) == (0, 2)
    pair = next(pair for pair in found.pairs if pair.new.id == "unified-2-1")
    assert (pair.old.bleu, pair.quality.value, pair.speedup.value) == (29.0, -4.0, 1.0)


def test_what_the_sides_have_nothing_of_in_common_is_what_is_compared():
    other = [row.replace(model="n", seed=2) for row in small_sweep()]
    found = against(other, small_sweep())
    assert found.differs == ["model", "seed"]
    assert len(found.pairs) == len(other)
    assert "model, seed" in comparison_section("Against x", found).note


def test_a_star_stands_where_the_interval_leaves_out_no_difference():
    found = against(small_sweep(unified_2=25.0), small_sweep())
    text = tables.markdown(comparison_section("Against x", found))
    assert "| unified | 2 | 1 | 29.00 | 25.00 | -4.00* |" in text
    assert "| unified | 3 | 1 | 27.50 | 27.50 | +0.00 |" in text
    assert "| tok/s over old |" in text


def test_every_pair_has_verdicts():
    worse = [
        record.replace(measured_speedup=0.5, measured_speedup_low=0.4, measured_speedup_high=0.6)
        for record in small_sweep()
    ]
    first, second = (
        against(new, small_sweep(unified_2=20.5)).pairs[-2:] for new in (small_sweep(), worse)
    )
    assert {(pair.keeps, pair.is_faster, pair.verdict) for pair in first} == {
        ("does not hold", "holds", "tie")
    }
    assert {(pair.is_faster, pair.verdict) for pair in second} == {
        ("does not hold", "does not hold")
    }
    heads = [
        head.text for head in comparison_section("Against x", against(worse, small_sweep())).heads
    ]
    assert heads[-3:] == ["keeps 90%", "faster than full", "as before"]
