from report_rows import not_applicable, small_sweep, sweep_row, two_depths

from ulskip_cli.report import paper
from ulskip_cli.report.rows import Group


def lines(section, keys=2):
    """A table by its first cells: a dict a line."""
    heads = section.heads
    return {tuple(cells[:keys]): dict(zip(heads, cells, strict=True)) for cells in section.cells}


def test_a_line_a_target_and_approach_with_speed_by_batch():
    rows = [sweep_row(batch=8, bleu=13.0), sweep_row(bleu=13.1)]
    rows += [sweep_row("full"), sweep_row("top_skip", bleu=9.0)]
    (section,) = paper.table4(rows)
    found = lines(section)
    # unified last, as in the paper
    assert list(found) == [("1x", "full"), ("2x", "top_skip"), ("2x", "unified")]
    keys = ("layers", "BLEU", "tok/s, batch 1", "tok/s, batch 8")
    assert [found["2x", "unified"][key] for key in keys] == ["3/6", "13.1*", "90", "720"]
    assert found["1x", "full"]["tok/s, batch 8"] == "–"


def beside(rows):
    return lines(paper.beside_paper([Group("m", rows)])[0], keys=3)


def test_ours_stand_beside_the_papers():
    found = beside([*small_sweep(), not_applicable(batch=1)])
    both = found["unified", "2", "1"]
    assert (both["paper BLEU"], both["ours BLEU"]) == ("21.2", "29.0")
    assert (both["paper of full"], both["ours of full"]) == ("89%", "97%")
    assert (both["paper x"], both["ours x"]) == ("1.76", "1.71")
    assert found["early_exit", "2", "1"]["ours x"] == "N/A"
    full = found["full", "1", "8"]
    assert (full["paper of full"], full["paper x"]) == ("100%", "1.00")


def test_a_speed_of_another_depth_than_the_score_is_shown_with_its_depth():
    found = beside([sweep_row("full"), two_depths(end_to_end_speedup=1.5)])
    both = found["skip_decode", "2", "1"]
    assert (both["ours BLEU"], both["ours x"], both["timed layers"]) == ("30.0", "1.50", "4.0/6")
