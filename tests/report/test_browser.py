"""The page in a real browser, headless; skipped where there is none."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_rows import small_sweep, write_folder

from ulskip_cli.report.build import Options, Report, write

BROWSER = next(
    (path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path),
    None,
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]
RESULTS = Path(__file__).parents[2] / "results" / "reproduce"
TRAP = "<b>bold</b> & \"quoted\" </script> 'single'"
ANSWERS = {
    "full-1-1": ["sentence number 0 is here", "one full answer", TRAP],
    "unified-2-1": ["sentence number 0 was here", "one other answer", TRAP],
    "top_skip-2-1": ["here here here", "", TRAP],
}


def opened(address, folder, *more):
    """Return the document at an address after its scripts ran."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder}",
        "--virtual-time-budget=3000",
        *more,
    ]
    run = subprocess.run(
        [BROWSER, *flags, "--dump-dom", address],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return run.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("browser") / "x", small_sweep(), ANSWERS)
    files = write(
        Report.of(Options((folder,), page=True, results_dir=folder.parent, against="paper"))
    )
    return next(file for file in files if file.name == "report.html")


@pytest.fixture
def dom(page, tmp_path):
    """The document as it stands when the page has run, opened at a state of its address."""

    def open_at(state="", script=""):
        file = tmp_path / "page.html"
        file.write_text(
            page.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>"), "utf-8"
        )
        return opened(f"{file.as_uri()}#?{state}", tmp_path)

    return open_at


def points(text):
    """Strategy, target and batch of every row of the table, as shown."""
    body = re.search(r'<table id="table">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)[1]
    rows = [
        re.findall(r"<td.*?</td>", row, re.DOTALL)
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    ]
    return [tuple(html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row[:3]) for row in rows]


def test_points_are_sorted_and_filtered(dom):
    assert len(points(dom())) == 10
    found = points(dom("sort=-measured&strategy=unified&batch_size=8"))
    assert found == [("unified", "3", "8"), ("unified", "2", "8")]
    text = dom("gate=pass&q=top_skip")
    assert points(text) == []
    assert "0 of 10 points" in text
    assert 'aria-sort="ascending"' in dom("sort=bleu")
    assert points(dom("strategy=unified|top_skip&target_speedup=3&sort=strategy"))[0] == (
        "top_skip",
        "3",
        "1",
    )


def test_clicks_sort_filter_and_reset(dom):
    click = "const click = (query) => document.querySelector(query).click();"
    sort = "click('th[data-key=bleu] button');"
    filters = "click('button[value=top_skip]'); click('button[name=batch_size][value=\"1\"]');"
    text = dom(script=click + sort + sort + filters)
    assert points(text) == [("top_skip", "3", "1"), ("top_skip", "2", "1")]
    assert text.count('aria-pressed="true"') > dom().count('aria-pressed="true"')
    assert (
        len(points(dom("strategy=unified&gate=pass&q=fast&sort=bleu", click + "click('#reset');")))
        == 10
    )
    typed = "const field = document.querySelector('[name=q]'); field.value = 'top_skip';"
    text = dom(script=f"{typed} field.dispatchEvent(new Event('input', {{bubbles: true}}));")
    assert {row[0] for row in points(text)} == {"top_skip"}
    assert 'data-theme="dark"' in dom("theme=light", click + "click('#theme');")


def test_a_point_is_read_beside_full_and_examples_are_stepped_through(dom):
    click = "const click = (query) => document.querySelector(query).click();"
    text = dom(
        "strategy=top_skip&batch_size=1&target_speedup=2",
        click + "click('.read'); click('#next'); click('#next');",
    )
    assert re.findall(r"<article.*?<b>(.*?)</b>", text, re.DOTALL) == ["full", "top_skip 2x"]
    assert "3 of 3" in text
    step = (
        "document.getElementById('reader').dispatchEvent(new KeyboardEvent('keydown', {key:"
        " 'ArrowLeft'}));"
    )
    assert "3 of 3" in dom(script=step)
    text = dom("order=changed")
    assert re.search(r"Source (\d)", text)[1] == "1"  # the second answer of top_skip is empty


def test_an_example_shows_the_differences(dom):
    text = dom("ex=0&base=full")
    assert "Satz 0" in text
    assert "sentence number 0 is here" in text
    assert "<del> is</del>" in text
    assert "<ins>was</ins>" in text
    assert "(empty)" in dom("ex=1")
    assert "1 of 1" in dom("find=bold")


SIZES = """
addEventListener("load", () => {
  const table = document.querySelector(".scroll");
  document.body.dataset.beyond = [table, document.documentElement]
    .map((element) => element.scrollWidth - element.clientWidth).join(",");
  const grids = [...document.querySelectorAll(".cards, .answers")];
  document.body.dataset.last = grids.map((grid) => {
    const tops = [...grid.children].map((card) => card.offsetTop);
    const lowest = tops.filter((top) => top === Math.max(...tops));
    return [tops.length, new Set(tops).size, lowest.length];
  }).join(",");
});
"""


@pytest.mark.parametrize("width", [700, 1000, 1400])
def test_the_table_fits_and_no_card_is_alone_in_the_last_row(tmp_path, width):
    options = Options(
        (RESULTS,), page=True, plots=False, output=tmp_path, results_dir=RESULTS.parent
    )
    page = next(file for file in write(Report.of(options)) if file.name == "report.html")
    page.write_text(
        page.read_text("utf-8").replace("</body>", f"<script>{SIZES}</script></body>"), "utf-8"
    )
    text = opened(page.as_uri(), tmp_path, f"--window-size={width},1000")
    table, whole = map(int, re.search(r'data-beyond="(.*?)"', text)[1].split(","))
    assert whole == 0
    assert table == 0 or width < 1400
    numbers = list(map(int, re.search(r'data-last="(.*?)"', text)[1].split(",")))
    assert len(numbers) == 6
    for cards, rows, last in (numbers[:3], numbers[3:]):
        assert rows == cards or last > 1


def test_texts_stay_texts(dom):
    text = dom("ex=2")
    assert "&lt;b&gt;" in re.sub(r"</?(?:ins|del)>", "", text)
    assert "<b>bold</b>" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
