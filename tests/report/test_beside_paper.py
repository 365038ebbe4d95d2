from report_rows import not_applicable, small_sweep, sweep_row

from ulskip_cli.report import beside_paper
from ulskip_cli.report.groups import Group
from ulskip_cli.report.published import TABLE_4


def cells(rows):
    lines, columns = beside_paper.comparison(Group("m", rows), 0.9)
    heads = [column.head for column in columns]
    return {
        (line["target"], line["approach"]): dict(zip(heads, (c.show(line) for c in columns), strict=True)) for line in lines
    }


def test_ours_stand_beside_the_papers():
    found = cells(small_sweep())
    both = found["2x", "unified"]
    assert (both["paper BLEU"], both["ours BLEU"]) == ("21.23", "29.00")
    assert (both["paper of full"], both["ours of full"]) == ("89%", "97%")
    assert (both["paper x b1"], both["ours x b1"]) == ("1.76", "1.71")
    assert (both["paper tok/s b8"], both["ours tok/s b8"]) == ("503", "1440")


def test_what_one_side_lacks_is_a_dash_and_what_cannot_be_is_not_applicable():
    found = cells([*small_sweep(), not_applicable(batch=1)])
    assert found["2x", "early_exit"]["paper x b2"] == "N/A"
    assert found["2x", "early_exit"]["ours BLEU"] == "N/A"
    assert found["3x", "unified"]["paper BLEU"] == "–"
    assert found["5x", "unified"]["ours BLEU"] == "–"
    assert set(beside_paper.BLEU) == set(TABLE_4)


def test_without_paired_timings_tokens_per_second_are_divided():
    rows = [sweep_row("full"), sweep_row(end_to_end_speedup=None, total_tokens_per_second=150.0)]
    assert cells(rows)["2x", "unified"]["ours x b1"] == "1.50"


def test_the_caveat_names_our_machine():
    assert "one A100-80G" in beside_paper.note(Group("m", small_sweep()))
    assert "CPU, 2 threads" in beside_paper.note(Group("m", small_sweep()))
