import html
import json
import re

from hypothesis import given
from hypothesis import strategies as st
from report_rows import configured, not_applicable, small_sweep, write_folder

from ulskip_cli.report import html_page
from ulskip_cli.report.build import Report, write
from ulskip_cli.report.rows import grouped, read_records

EVIL = "</script><script>alert('x')</script> <!-- \"quoted\" & \u2028"


def page(tmp_path, rows, answers=None, against=None, **options):
    folder = write_folder(tmp_path / "x", rows, answers)
    report = Report([folder], against)
    return html_page.write_page(report, write(report, **options)).read_text("utf-8")


def embedded(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def cells(text):
    """Return the text of every cell of the table of points, by the column's key, a dict a row."""
    table = re.search(r'<table id="table">.*?</table>', text, re.DOTALL)[0]
    keys = [*re.findall(r'data-key="([^"]+)"', table), "answers"]
    lines = []
    for row in re.findall(r"<tr style=.*?</tr>", table, re.DOTALL):
        texts = re.findall(r"<td.*?</td>", row, re.DOTALL)
        plain = [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in texts]
        lines.append(dict(zip(keys, plain, strict=False)))
    return lines


def test_the_page_needs_nothing_but_itself(tmp_path):
    text = page(tmp_path, small_sweep(), {"unified-2-1": ["a"]})
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:image/svg\+xml;base64,)""", text)
    assert not re.search(r"@import|url\(", text)
    assert "{{" not in text and "{%" not in text
    assert text.count("<figure><img src=") == 1


def test_texts_cannot_leave_their_element(tmp_path):
    evil = {"model": {"name": EVIL}, "strategy": {"mine": EVIL}}
    rows = [configured(row, **evil) for row in small_sweep()]
    rows += [configured(row.replace(id=f"{row.id}-other"), decoding={"name": EVIL}) for row in rows]
    rows.append(not_applicable().replace(reason=EVIL))
    text = page(tmp_path, rows, {"unified-2-1": [EVIL], "full-1-1": ["plain"]}, plots=False)
    assert "<script>alert" not in text and text.count("</script>") == 2
    assert 'value="</' not in text and '"quoted" &' not in text
    assert EVIL in embedded(text)["texts"]


def test_rows_and_answers_are_embedded_by_position(tmp_path):
    stored = {"unified-2-1": ["a", "b"], "full-1-1": ["a", "c"]}
    text = page(tmp_path, small_sweep(), stored, plots=False)
    (only,) = embedded(text)["sets"]
    lines = cells(text)
    for run in only["runs"]:
        line = lines[run["row"]]
        assert line["answers"] == "read"
        assert (line["strategy"], line["batch size"]) in {("unified", "1"), ("full", "1")}
        assert lines[only["runs"][run["baseline"]]["row"]]["strategy"] == "full"
    assert sum(line["answers"] == "read" for line in lines) == 2


def test_points_without_a_result_are_shown_as_such(tmp_path):
    rows = [*small_sweep(), not_applicable(), not_applicable("skip_decode", status="failed")]
    text = page(tmp_path, rows, plots=False)
    shown = {line["strategy"]: line for line in cells(text)}
    assert [shown[name]["measured"] for name in ("early_exit", "skip_decode")] == ["N/A", "failed"]
    assert '<span title="early_exit decodes one sequence at a time">N/A</span>' in text
    assert shown["early_exit"]["layers"] == "N/A"


def test_comparisons_and_settings_to_filter_by_are_on_the_page(tmp_path):
    old = write_folder(tmp_path / "old", small_sweep(unified_2=20.0))
    few = [row.replace(num_examples=4, id=f"{row.id}-few") for row in small_sweep()]
    text = page(tmp_path, [*small_sweep(), *few], plots=False, against=str(old))
    assert '<span class="tag good">holds</span>' in text
    assert {line["examples"] for line in cells(text)} == {"4", "20"}
    assert re.findall(r'name="examples" value="(\d+)"', text) == ["4", "20"]


def collected(tmp_path, stored, rows=None):
    rows = read_records([write_folder(tmp_path / "x", rows or small_sweep(), stored)])
    return html_page.shown_answers(grouped(rows), rows)


def test_the_note_counts_what_is_left_out(tmp_path, monkeypatch):
    assert collected(tmp_path / "none", {}).sets == []
    with monkeypatch.context() as limits:
        limits.setattr(html_page, "MAX_EXAMPLES", 4)
        assert "4 of 9 examples" in collected(tmp_path, {"unified-2-1": ["a"] * 9}).note
        limits.setattr(html_page, "MAX_EXAMPLES", 0)
        assert collected(tmp_path / "zero", {"unified-2-1": ["a"]}).sets == []
    unlike = collected(tmp_path / "unlike", {"unified-2-1": ["a", "b"], "unified-3-1": ["a"]})
    assert len(unlike.sets[0].runs) == 1  # the other run answered other examples
    monkeypatch.setattr(html_page, "MAX_RUNS", 2)
    rows = small_sweep()
    found = collected(tmp_path / "most", {row.id: ["a"] for row in rows}, rows=rows)
    assert {rows[run.row].batch_size for run in found.sets[0].runs} == {1}
    assert "answers of 2 of 10 points" in found.note


def test_runs_of_equal_labels_are_told_apart_by_what_differs(tmp_path):
    seeds = [(row, seed) for row in small_sweep() for seed in (1, 2)]
    rows = [configured(row, seed=seed).replace(id=f"{row.id}-{seed}") for row, seed in seeds]
    rows += [rows[0].replace(id="twin")]
    stored = {row.id: ["a"] for row in rows if row.batch_size == 1}
    labels = [run.label for run in collected(tmp_path, stored, rows=rows).sets[0].runs]
    assert len(set(labels)) == len(labels) == 11
    assert {"unified 2x · seed 1", "unified 2x · seed 2", "full · seed 1 · twin"} <= set(labels)


def test_answers_are_compared_with_the_reference_and_with_full(tmp_path):
    stored = {"full-1-1": ["one full answer"], "unified-2-1": ["one other answer"]}
    found = collected(tmp_path, stored)
    (only,) = found.sets
    full, other = (run.outputs[0] for run in only.runs)
    reference = only.examples[0]["reference"]
    assert set(found.changes) == {f"{reference},{full}", f"{reference},{other}", f"{full},{other}"}
    assert found.changes[f"{full},{other}"] == [67, 0, 0, 0, 3, 5, 6, 7, 0, 0]


texts = st.text(st.sampled_from("ab, \n\u00e9\u4e2d\U0001f600"), max_size=25)


@given(texts, texts)
def test_the_lengths_of_a_comparison_make_up_both_texts(base, text):
    percent, *lengths = html_page.compare_texts(base, text)
    assert 0 <= percent <= 100
    assert sum(lengths[0::3]) + sum(lengths[1::3]) == len(base)
    assert sum(lengths[0::3]) + sum(lengths[2::3]) == len(text)
    i = j = 0
    for equal, missing, added in zip(lengths[0::3], lengths[1::3], lengths[2::3], strict=True):
        assert base[i : i + equal].split() == text[j : j + equal].split()
        i, j = i + equal + missing, j + equal + added
