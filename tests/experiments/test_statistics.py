import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import not_applicable, small_sweep, sweep_row, write_folder

from ulskip_cli.experiments.statistics import (
    FAILS,
    HOLDS,
    TIE,
    Difference,
    Scorer,
    apart,
    from_records,
    median_interval,
    primary,
    sentence,
    shares,
    speed_ratio,
    unchanged,
    within,
)
from ulskip_cli.report.rows import read_records

GOOD = [f"sentence number {i} is here" for i in range(20)]
BAD = [f"nothing of the {i} kind whatever" for i in range(20)]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30))
def test_an_interval_of_a_median_contains_it(samples):
    interval = median_interval(samples)
    assert interval.low <= statistics.median(samples) == interval.median <= interval.high


def test_intervals_contain_the_true_median_as_often_as_they_say():
    draws = np.random.default_rng(0).lognormal(size=(2000, 7))
    hits = np.mean([one.low <= 1.0 <= one.high for one in map(median_interval, draws)])
    assert hits == pytest.approx(median_interval(draws[0]).coverage, abs=0.01)
    assert median_interval([3.0]).coverage == 0


@pytest.fixture
def stored(tmp_path):
    path = write_folder(
        tmp_path / "x",
        small_sweep(),
        {"unified-2-1": GOOD, "unified-2-8": GOOD, "top_skip-2-1": BAD},
    )
    return {record.id: record for record in read_records([path])}


def test_stored_answers_are_compared_by_a_paired_bootstrap(stored):
    found = Scorer().difference(stored["unified-2-1"], stored["top_skip-2-1"], "bleu")
    assert (found.how, found.verdict()) == ("paired bootstrap", HOLDS) and found.low > 50
    assert (
        Scorer().difference(stored["top_skip-2-1"], stored["unified-2-1"], "bleu").verdict()
        == FAILS
    )
    same = Scorer().difference(stored["unified-2-1"], stored["unified-2-8"], "bleu")
    assert same.is_same and (same.value, same.verdict(), unchanged(same)) == (0.0, TIE, HOLDS)


def test_without_answers_the_intervals_of_the_records_are_taken_together(stored):
    found = Scorer().difference(stored["unified-3-1"], stored["top_skip-3-1"], "bleu")
    assert (found.value, found.high - found.low) == (pytest.approx(22.5), pytest.approx(2 * 2**0.5))
    full_of_another = {**sweep_row().vs_baseline["bleu"].model_dump(), "full": 40.0}
    found = from_records(
        sweep_row(bleu=29), sweep_row(vs_baseline={"bleu": full_of_another}), "bleu"
    )
    assert (found.low, found.verdict()) == (None, TIE)
    assert (
        from_records(sweep_row(decode_loss=1.5), sweep_row(decode_loss=2.0), "decode_loss").value
        == 0.5
    )


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_examples_give_no_interval(tmp_path, count):
    few = [record.replace(num_examples=count) for record in small_sweep()]
    path = write_folder(
        tmp_path / "x", few, {"unified-2-1": GOOD[:count], "top_skip-2-1": BAD[:count]}
    )
    records = {record.id: record for record in read_records([path])}
    for name in (
        "top_skip-2-1",
        "top_skip-3-1",
        "full-1-1",
    ):  # with answers on both sides, and without
        found = Scorer().difference(records["unified-2-1"], records[name], "bleu")
        assert (found.low, found.verdict()) == (None, TIE)


def test_only_shared_examples_are_compared_where_the_data_differ(tmp_path):
    texts = {"long": GOOD, "short": BAD[:12], "few": GOOD[:5]}
    paths = [
        write_folder(tmp_path / name, small_sweep(), {"unified-2-1": answers})
        for name, answers in texts.items()
    ]
    long, short, few = records_of(paths)
    found = Scorer().difference(long, short, "bleu")
    assert "12 shared examples" in found.how and found.verdict() == HOLDS
    assert Scorer().difference(long, few, "bleu").how == "from the rows' intervals"


def records_of(paths):
    return [
        next(record for record in read_records([path]) if record.id == "unified-2-1")
        for path in paths
    ]


def test_speedups_are_compared_as_ratios():
    found = speed_ratio(sweep_row(speedup=2.0), sweep_row(speedup=1.0))
    assert found.value == 2.0 and 1.9 < found.low < 2.0 < found.high < 2.1
    assert found.verdict(1.0) == HOLDS and within(found, 0.15) == FAILS
    assert (
        within(Difference(1.0, 0.99, 1.01, ""), 0.15) == HOLDS
        and within(Difference(1.0, None, None, ""), 0.15) == TIE
    )
    assert speed_ratio(sweep_row(measured_speedup=None), sweep_row()) is None
    assert speed_ratio(sweep_row(speedup_interval_coverage=0.5), sweep_row()).low is None


@given(st.floats(1, 40), st.floats(1, 40), st.floats(0.001, 0.2))
def test_apart_is_symmetric_and_never_of_a_point_and_itself(bleu, other, margin):
    first, second = sweep_row(bleu=bleu, margin=margin), sweep_row(bleu=other, margin=margin)
    assert apart(first, second, "bleu") == apart(second, first, "bleu")
    assert not apart(first, first, "bleu")


def test_the_tasks_first_metric_decides():
    assert primary(small_sweep()) == "bleu"
    assert primary([sweep_row(bleu=None)]) == "chrf"
    assert primary([sweep_row(bleu=None, chrf=None)]) == "decode_loss"
    assert primary([sweep_row(bleu=None, chrf=None, decode_loss=None)]) is None
    assert primary([sweep_row(bleu=None, chrf=None, rouge1=9.0, rougeL=10.0)]) == "rougeL"


@pytest.mark.parametrize(
    ("bleu", "margin", "word", "verdict"),
    [
        (29.0, 0.02, "passes", HOLDS),
        (27.1, 0.02, "passes?", TIE),
        (26.9, 0.02, "below?", TIE),
        (20.0, 0.02, "below", FAILS),
    ],
)
def test_a_point_passes_at_the_gates_share_and_surely_where_its_interval_does(
    bleu, margin, word, verdict
):
    record = sweep_row(bleu=bleu, margin=margin)
    share = shares([sweep_row("full"), record])[record.key]
    assert (share.word, share.verdict) == (word, verdict)


def test_where_lower_is_better_the_share_is_turned():
    full, record = (
        record.replace(bleu=None, chrf=None, vs_baseline={})
        for record in (sweep_row("full"), sweep_row(decode_loss=2.5))
    )
    share = shares([full, record])[record.key]
    assert (share.metric, share.share, share.word) == ("decode_loss", 0.8, "below?")
    assert shares([sweep_row(vs_baseline={}), not_applicable()]) == {}


@pytest.mark.parametrize(
    ("metric", "score", "full"),
    [("bleu", 42.0, 30.0), ("bleu", 3.0, 0.2), ("decode_loss", 0.001, 2.0)],
)
def test_no_share_exceeds_what_the_metric_can_be(metric, score, full):
    compared = {
        "full": full,
        "delta": score - full,
        "delta_low": -1e3,
        "delta_high": 1e3,
        "p_value": 0.5,
    }
    record = sweep_row(
        **{"bleu": None, "chrf": None, metric: score, "vs_baseline": {metric: compared}}
    )
    share = shares([record])[record.key]
    assert (
        0
        <= share.low
        <= share.share
        <= share.high
        <= (100 / full if metric == "bleu" else math.inf)
    )


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        (
            sweep_row(bleu=26.3),
            (
                "unified keeps 3 of 6 layers",
                "1.80x as fast (1.78 to 1.82)",
                "BLEU 26.3 instead of 30.0 (a sig",
            ),
        ),
        (sweep_row(num_examples=4), ("too few examples",)),
        (sweep_row(speedup_interval_coverage=0.0), ("too few timed pairs",)),
        (sweep_row("full"), ("full model", "BLEU 30.0.")),
        (not_applicable(), ("no result", "one sequence")),
    ],
)
def test_a_record_is_told_in_a_sentence(record, parts):
    assert all(part in sentence(record) for part in parts)
