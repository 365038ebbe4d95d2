import pytest
from report_rows import small_sweep, sweep_row, write_folder

from ulskip_cli.report.difference import FAILS, HOLDS, TIE, Difference, Scorer, from_rows, speed_ratio
from ulskip_cli.report.rows import read_rows

GOOD = [f"sentence number {i} is here" for i in range(20)]
BAD = [f"nothing of the {i} kind whatever" for i in range(20)]


@pytest.fixture
def rows(tmp_path):
    path = write_folder(tmp_path / "x", small_sweep(), {"unified-2-1": GOOD, "unified-2-8": GOOD, "top_skip-2-1": BAD})
    return {row["id"]: row for row in read_rows([path])}


def test_stored_answers_are_compared_by_a_paired_bootstrap(rows):
    found = Scorer().difference(rows["unified-2-1"], rows["top_skip-2-1"], "bleu")
    assert found.how == "paired bootstrap"
    assert found.low > 50
    assert found.verdict() == HOLDS
    assert Scorer().difference(rows["top_skip-2-1"], rows["unified-2-1"], "bleu").verdict() == FAILS


def test_the_same_answers_are_no_difference(rows):
    found = Scorer().difference(rows["unified-2-1"], rows["unified-2-8"], "bleu")
    assert (found.value, found.low, found.high, found.how, found.verdict()) == (0.0, 0.0, 0.0, "the same answers", TIE)


def test_without_answers_the_rows_intervals_are_taken_together(rows):
    found = Scorer().difference(rows["unified-3-1"], rows["top_skip-3-1"], "bleu")
    assert found.how == "from the rows' intervals"
    assert found.value == pytest.approx(22.5)
    assert found.high - found.low == pytest.approx(2 * 2**0.5)


def test_rows_of_unlike_full_models_have_no_interval():
    other = sweep_row(vs_baseline={"bleu": {**sweep_row()["vs_baseline"]["bleu"], "full": 40.0}})
    found = from_rows(sweep_row(bleu=29), other, "bleu")
    assert (found.low, found.verdict()) == (None, TIE)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_too_few_examples_give_no_interval(tmp_path, count):
    few = [row | {"num_examples": count} for row in small_sweep()]
    path = write_folder(tmp_path / "x", few, {"unified-2-1": GOOD[:count], "top_skip-2-1": BAD[:count]})
    rows = {row["id"]: row for row in read_rows([path])}
    for name in ("top_skip-2-1", "top_skip-3-1", "full-1-1"):  # with answers on both sides, and without
        found = Scorer().difference(rows["unified-2-1"], rows[name], "bleu")
        assert (found.low, found.verdict()) == (None, TIE)
        assert found.text("+.1f").endswith("(fewer than 10 examples)")


def test_an_interval_without_width_is_no_sign_of_the_same_answers():
    assert Difference(9.0, 9.0, 9.0, "from the rows' intervals").text("+.1f") == "+9.0 (+9.0 to +9.0)"


def test_a_lower_loss_is_better():
    one, other = sweep_row(decode_loss=1.5), sweep_row(decode_loss=2.0)
    assert from_rows(one, other, "decode_loss").value == 0.5


def test_speedups_are_compared_as_ratios():
    found = speed_ratio(sweep_row(speedup=2.0), sweep_row(speedup=1.0))
    assert found.value == 2.0
    assert 1.9 < found.low < 2.0 < found.high < 2.1
    assert found.verdict(1.0) == HOLDS
    assert speed_ratio(sweep_row(measured_speedup=None), sweep_row()) is None


def test_only_shared_examples_are_compared_where_the_data_differ(tmp_path):
    long, short = GOOD, GOOD[:12]
    paths = [
        write_folder(tmp_path / name, small_sweep(), {"unified-2-1": texts}) for name, texts in (("l", long), ("s", short))
    ]
    rows = [next(row for row in read_rows([path]) if row["id"] == "unified-2-1") for path in paths]
    assert Scorer().difference(*rows, "bleu").how == "the same answers to 12 shared examples"
    write_folder(tmp_path / "s", small_sweep(), {"unified-2-1": BAD[:12]})
    found = Scorer().difference(*rows, "bleu")
    assert found.how == "paired bootstrap over answers to 12 shared examples"
    assert found.verdict() == HOLDS
    write_folder(tmp_path / "s", small_sweep(), {"unified-2-1": GOOD[:5]})
    assert Scorer().difference(*rows, "bleu").how == "from the rows' intervals"
