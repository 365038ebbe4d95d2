import pytest
from report_rows import sweep_row, write_folder

from ulskip_cli.report import columns
from ulskip_cli.report.build import Report, write
from ulskip_cli.report.columns import Column
from ulskip_cli.report.html_page import last_stage, write_page
from ulskip_cli.report.tables import short_section


def test_what_a_row_shows_follows_from_its_measurements():
    row = sweep_row()
    assert (columns.layers(row), columns.num_pairs(row)) == ("3/6", 7)
    assert columns.decode_rate(row) == pytest.approx(90)
    assert columns.full_rate(row) == pytest.approx(50)
    stages = [{"first_step": 4, "kept_layers": [0, 5]}]
    staged = sweep_row(later_stages=stages, evaluated_mean_kept_layers=2.5)
    assert (columns.layers(staged), last_stage(staged)) == ("2.5/6", {0, 5})


def test_one_line_of_the_list_shows_a_value_in_every_table(tmp_path, monkeypatch):
    shown = *columns.COLUMNS, Column("length\nratio", "length_ratio", ".3f")
    for module in ("columns", "tables"):
        monkeypatch.setattr(f"ulskip_cli.report.{module}.COLUMNS", shown)
    record = sweep_row(length_ratio=0.875)
    assert short_section([record]).heads[-1] == "length ratio"
    report = Report([write_folder(tmp_path / "x", [sweep_row("full"), record])])
    (table4,) = report.table4
    assert "0.875" in table4.cells[-1]
    written = write(report, plots=False)
    assert written[0].read_text("utf-8").count("0.875") == 2  # in table 4 and of all points
    assert "0.875" in write_page(report, written).read_text("utf-8")
