"""The page in a real browser, headless; skipped where there is none."""

import html
import re
import shutil
import subprocess

import pytest
from report_rows import small_sweep, write_folder

from ulskip_cli.report.command import write
from ulskip_cli.report.gathered import Options, Report

BROWSER = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
TRAP = "<b>bold</b> & \"quoted\" </script> 'single'"
ANSWERS = {
    "full-1-1": ["sentence number 0 is here", "one full answer", TRAP],
    "unified-2-1": ["sentence number 0 was here", "one other answer", TRAP],
    "top_skip-2-1": ["here here here", "", TRAP],
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("browser") / "x", small_sweep(), ANSWERS)
    files = write(Report.of(Options((folder,), page=True, results_dir=folder.parent, against="paper")))
    return next(file for file in files if file.name == "report.html")


@pytest.fixture
def dom(page, tmp_path):
    """The document as it stands when the page has run, opened at a state of its address."""

    def open_at(state=""):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=3000"]
        address = f"{page.as_uri()}#?{state}"
        run = subprocess.run([BROWSER, *flags, "--dump-dom", address], check=True, capture_output=True, text=True, timeout=120)
        return run.stdout

    return open_at


def points(text):
    """Strategy, target and batch of every row of the table, as shown."""
    body = re.search(r'<table id="table">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)[1]
    rows = [re.findall(r"<td.*?</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)]
    return [tuple(html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row[:3]) for row in rows]


def test_points_are_sorted_and_filtered(dom):
    assert len(points(dom())) == 10
    found = points(dom("sort=-measured&strategy=unified&batch_size=8"))
    assert found == [("unified", "3", "8"), ("unified", "2", "8")]
    text = dom("gate=pass&q=top_skip")
    assert points(text) == []
    assert "0 of 10 points" in text
    assert 'aria-sort="ascending"' in dom("sort=bleu")


def test_an_example_shows_the_differences(dom):
    text = dom("ex=0&base=full")
    assert "Satz 0" in text
    assert "sentence number 0 is here" in text
    assert "<del> is</del>" in text
    assert "<ins>was</ins>" in text
    assert "(empty)" in dom("ex=1")
    assert "1 of 1" in dom("find=bold")


def test_texts_stay_texts(dom):
    text = dom("ex=2")
    assert "&lt;b&gt;" in re.sub(r"</?(?:ins|del)>", "", text)
    assert "<b>bold</b>" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
