import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = runpy.run_path(str(ROOT / "benchmarks" / "reference.py"))


def test_the_committed_pages_are_what_is_printed():
    committed = (ROOT / "docs" / "combinations.md").read_text("utf-8")
    assert REFERENCE["combinations"]() == committed, "run `make reference`"
    results = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert results.endswith(REFERENCE["row_keys"]()), "run `make reference`"
