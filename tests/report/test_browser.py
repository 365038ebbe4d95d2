"""The page in a real browser, headless; skipped where there is none."""

import re
import shutil
import subprocess

import pytest
from report import test_html_page
from report_rows import small_sweep

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]
TRAP = "<b>bold</b> & \"quoted\" </script> 'single'"
ANSWERS = {
    "full-1-1": ["sentence number 0 is here", "one full answer", TRAP],
    "unified-2-1": ["sentence number 0 was here", "one other answer", TRAP],
    "top_skip-2-1": ["here here here", "", TRAP],
}
CLICK = "const click = (query) => document.querySelector(query).click();"


def opened(address, folder, *more):
    """Return the document at an address after its scripts ran."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    command = [BROWSER, *flags, "--virtual-time-budget=3000", *more, "--dump-dom", address]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return test_html_page.page(folder, small_sweep(), ANSWERS, against="paper")


@pytest.fixture
def dom(page, tmp_path):
    """The document as it stands when the page has run, opened at a state of its address."""

    def open_at(state="", script=""):
        file = tmp_path / "page.html"
        file.write_text(page.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
        return opened(f"{file.as_uri()}#?{state}", tmp_path)

    return open_at


def points(text):
    """Return strategy, target and batch of every row of the table, as shown."""
    rows = test_html_page.cells(text)
    return [(row["strategy"], row["target"], row["batch size"]) for row in rows]


def test_points_are_sorted_and_filtered(dom):
    assert len(points(dom())) == 10
    found = points(dom("sort=-measured&strategy=unified&batch size=8"))
    assert found == [("unified", "3", "8"), ("unified", "2", "8")]
    text = dom("gate=pass&q=top_skip")
    assert points(text) == [] and "0 of 10 points" in text
    assert points(dom("gate=pass"))
    assert 'aria-sort="ascending"' in dom("sort=BLEU")
    click = "click('th[data-key=BLEU] button');"
    filters = "click('button[value=top_skip]'); click('button[name=\"batch size\"][value=\"1\"]');"
    text = dom(script=CLICK + click + click + filters)
    assert points(text) == [("top_skip", "3", "1"), ("top_skip", "2", "1")]
    assert len(points(dom("strategy=unified&q=fast", CLICK + "click('#reset');"))) == 10
    assert 'data-theme="dark"' in dom("theme=light", CLICK + "click('#theme');")


def test_a_point_is_read_beside_full_and_differences_are_marked(dom):
    steps = "click('.read'); click('#next'); click('#next');"
    text = dom("strategy=top_skip&batch size=1&target=2", CLICK + steps)
    assert re.findall(r"<article.*?<b>(.*?)</b>", text, re.DOTALL) == ["full", "top_skip 2x"]
    assert "3 of 3" in text
    assert re.search(r"Source (\d)", dom("order=changed"))[1] == "1"  # it has an empty answer
    text = dom("ex=0&base=full")
    assert "Satz 0" in text and "<del> is</del>" in text and "<ins>was</ins>" in text
    assert "(empty)" in dom("ex=1") and "1 of 1" in dom("find=bold")
    text = dom("ex=2")
    assert "&lt;b&gt;" in re.sub(r"</?(?:ins|del)>", "", text)
    assert "<b>bold</b>" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
