import json
import re

from report_rows import not_applicable, small_sweep, write_folder

from ulskip_cli.report.command import write
from ulskip_cli.report.gathered import Options, Report

EVIL = "</script><script>alert('x')</script> <!-- \"quoted\" & \u2028"


def page(tmp_path, rows, answers=None, **options):
    folder = write_folder(tmp_path / "x", rows, answers)
    files = write(Report.of(Options((folder,), page=True, results_dir=tmp_path, **options)))
    return next(file for file in files if file.name == "report.html").read_text("utf-8")


def embedded(text, name):
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_needs_nothing_but_itself(tmp_path):
    text = page(tmp_path, small_sweep(), {"unified-2-1": ["a"]})
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!#)""", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
    assert not re.search(r"@import|url\((?!#)", text)
    assert "{{" not in text
    assert text.count("<svg ") >= 3


def test_texts_cannot_leave_their_element(tmp_path):
    rows = [row | {"model": EVIL} for row in small_sweep()]
    text = page(tmp_path, rows, {"unified-2-1": [EVIL], "full-1-1": ["plain"]}, plots=False)
    assert "<script>alert" not in text
    assert text.count("</script>") == 3
    answers = embedded(text, "answers")
    assert EVIL in answers["texts"]


def test_rows_and_answers_are_embedded_by_position(tmp_path):
    text = page(tmp_path, small_sweep(), {"unified-2-1": ["a", "b"], "full-1-1": ["a", "c"]}, plots=False)
    data, answers = embedded(text, "data"), embedded(text, "answers")
    keys = [column["key"] for column in data["columns"]]
    (only,) = answers["sets"]
    for run in only["runs"]:
        line = dict(zip(keys, data["rows"][run["row"]], strict=True))
        assert line["read"]
        assert (line["strategy"], line["batch_size"]) in {("unified", 1), ("full", 1)}
        baseline = only["runs"][run["baseline"]]
        assert dict(zip(keys, data["rows"][baseline["row"]], strict=True))["strategy"] == "full"
    assert sum(line[keys.index("read")] for line in data["rows"]) == 2


def test_points_that_came_to_nothing_are_shown_as_such(tmp_path):
    text = page(tmp_path, [*small_sweep(), not_applicable(), not_applicable("skip_decode", status="failed")], plots=False)
    data = embedded(text, "data")
    position = [column["key"] for column in data["columns"]].index("absent")
    assert {line[position] for line in data["rows"]} == {None, "N/A", "failed"}
    assert "early_exit decodes one sequence at a time" in text


def test_comparisons_stand_on_the_page(tmp_path):
    text = page(tmp_path, small_sweep(), plots=False, against="paper")
    assert 'id="beside-the-paper"' in text
    old = write_folder(tmp_path / "old", small_sweep(unified_2=20.0))
    text = page(tmp_path, small_sweep(), plots=False, against=str(old))
    assert '<span class="tag good">holds</span>' in text


def test_whole_numbers_stay_whole(tmp_path):
    rows = [*small_sweep(), *(row | {"num_examples": 4, "id": row["id"] + "-few"} for row in small_sweep())]
    columns = {column["key"]: column for column in embedded(page(tmp_path, rows, plots=False), "data")["columns"]}
    assert (columns["num_examples"]["kind"], columns["num_examples"]["trim"]) == ("number", True)
    assert columns["num_examples"]["facet"]
