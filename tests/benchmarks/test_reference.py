import runpy
from pathlib import Path

import pytest

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.engines import ENGINES

ROOT = Path(__file__).parents[2]
PAGES = runpy.run_path(str(ROOT / "benchmarks" / "reference.py"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_what_is_printed(name):
    assert PAGES[name]() == (ROOT / "docs" / name).read_text("utf-8"), "run `make reference`"


def test_a_mark_stands_where_an_engine_supports_a_need():
    lines = PAGES["combinations.md"]().splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {Need.BEAMS.text} | ") and "✓" in line]
    (heads,) = [line for line in lines if "`torch`" in line and line.startswith("|")]
    for engine, mark in zip(heads.split("|")[2:-1], row.split("|")[2:-1], strict=True):
        for name in engine.replace("`", "").split(","):
            assert (Need.BEAMS in ENGINES[name.strip()].supports) == ("✓" in mark)
