from report_rows import not_applicable, sweep_row

from ulskip_cli.report.status import absent, done, reasons, status


def test_rows_without_a_status_are_done():
    assert status(sweep_row()) == "done"
    assert done([sweep_row(), not_applicable(), not_applicable(status="failed")]) == [sweep_row()]


def test_an_empty_cell_says_why():
    assert [absent(row) for row in (sweep_row(), not_applicable(), not_applicable(status="failed"))] == ["–", "N/A", "failed"]


def test_a_reason_is_told_once_and_many_are_cut():
    rows = [not_applicable(batch=2), not_applicable(batch=8)]
    assert reasons(rows) == ["N/A (early_exit): early_exit decodes one sequence at a time"]
    many = [not_applicable(status="failed") | {"reason": f"reason {i}"} for i in range(7)]
    assert reasons(many)[-1] == "and 2 reasons more"
