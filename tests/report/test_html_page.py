import html
import json
import re

from report_rows import not_applicable, small_sweep, write_folder

from ulskip_cli.report.build import Options, Report, write

EVIL = "</script><script>alert('x')</script> <!-- \"quoted\" & \u2028"


def page(tmp_path, rows, answers=None, **options):
    folder = write_folder(tmp_path / "x", rows, answers)
    files = write(Report.of(Options((folder,), page=True, results_dir=tmp_path, **options)))
    return next(file for file in files if file.name == "report.html").read_text("utf-8")


def embedded(text):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    )


def cells(text):
    """The text of every cell of the table of points, by the column's key, a dict a row."""
    table = re.search(r'<table id="table">.*?</table>', text, re.DOTALL)[0]
    keys = re.findall(r'data-key="([^"]+)"', table)
    rows = re.findall(r"<tr style=.*?</tr>", table, re.DOTALL)
    columns = (
        [
            html.unescape(re.sub(r"<[^>]+>", "", cell))
            for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)
        ]
        for row in rows
    )
    return [dict(zip([*keys, "answers"], own, strict=False)) for own in columns]


def test_the_page_needs_nothing_but_itself(tmp_path):
    text = page(tmp_path, small_sweep(), {"unified-2-1": ["a"]})
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:image/svg\+xml;base64,)""", text)
    assert not re.search(r"@import|url\(", text)
    assert "{{" not in text and "{%" not in text
    assert text.count("<img ") >= 3


def test_texts_cannot_leave_their_element(tmp_path):
    rows = [row.replace(model=EVIL, strategy_options={"a": EVIL}) for row in small_sweep()]
    rows = [
        *rows,
        *(row.replace(id=f"{row.id}-other", decoding=EVIL) for row in rows),
        not_applicable().replace(reason=EVIL),
    ]
    text = page(tmp_path, rows, {"unified-2-1": [EVIL], "full-1-1": ["plain"]}, plots=False)
    assert "<script>alert" not in text
    assert text.count("</script>") == 2
    assert 'value="</' not in text and '"quoted" &' not in text
    assert EVIL in embedded(text)["texts"]


def test_rows_and_answers_are_embedded_by_position(tmp_path):
    text = page(
        tmp_path, small_sweep(), {"unified-2-1": ["a", "b"], "full-1-1": ["a", "c"]}, plots=False
    )
    (only,) = embedded(text)["sets"]
    lines = cells(text)
    for run in only["runs"]:
        line = lines[run["row"]]
        assert line["answers"] == "read"
        assert (line["strategy"], line["batch_size"]) in {("unified", "1"), ("full", "1")}
        assert lines[only["runs"][run["baseline"]]["row"]]["strategy"] == "full"
    assert sum(line["answers"] == "read" for line in lines) == 2


def test_points_that_came_to_nothing_are_shown_as_such(tmp_path):
    text = page(
        tmp_path,
        [*small_sweep(), not_applicable(), not_applicable("skip_decode", status="failed")],
        plots=False,
    )
    shown = {line["strategy"]: line for line in cells(text)}
    assert [shown[name]["measured"] for name in ("early_exit", "skip_decode")] == ["N/A", "failed"]
    assert "reason" not in shown["early_exit"]
    assert '<span title="early_exit decodes one sequence at a time">N/A</span>' in text
    assert shown["early_exit"]["layers"] == "–"


def test_comparisons_stand_on_the_page(tmp_path):
    text = page(tmp_path, small_sweep(), plots=False, against="paper")
    assert 'id="comparison-with-the-paper"' in text
    old = write_folder(tmp_path / "old", small_sweep(unified_2=20.0))
    text = page(tmp_path, small_sweep(), plots=False, against=str(old))
    assert '<span class="tag good">holds</span>' in text


def test_whole_numbers_stay_whole_and_are_offered_as_filters(tmp_path):
    rows = [
        *small_sweep(),
        *(row.replace(num_examples=4, id=row.id + "-few") for row in small_sweep()),
    ]
    text = page(tmp_path, rows, plots=False)
    assert {line["num_examples"] for line in cells(text)} == {"4", "20"}
    assert re.findall(r'name="num_examples" value="(\d+)"', text) == ["4", "20"]
