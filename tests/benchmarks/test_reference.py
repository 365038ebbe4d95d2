import runpy
from pathlib import Path

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.engines import engine_class

ROOT = Path(__file__).parents[2]
REFERENCE = runpy.run_path(str(ROOT / "benchmarks" / "reference.py"))


def test_the_committed_pages_are_what_is_printed():
    committed = (ROOT / "docs" / "combinations.md").read_text("utf-8")
    assert REFERENCE["combinations"]() == committed, "run `make reference`"
    results = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert results.endswith(REFERENCE["row_keys"]()), "run `make reference`"


def test_a_mark_stands_where_an_engine_supports_a_need():
    lines = REFERENCE["combinations"]().splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {Need.BEAMS.text} | ") and "✓" in line]
    (heads,) = [line for line in lines if "`torch`" in line and line.startswith("|")]
    for engine, mark in zip(heads.split("|")[2:-1], row.split("|")[2:-1], strict=True):
        for name in engine.replace("`", "").split(","):
            assert (Need.BEAMS in engine_class(name.strip()).supports) == ("✓" in mark)
