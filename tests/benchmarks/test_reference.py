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


def test_every_engine_lists_what_it_does_not_support():
    lines = REFERENCE["combinations"]().splitlines()
    for engine in ("torch", "transformers", "llama_cpp", "openvino"):
        row = next(line for line in lines if line.startswith("| `") and f"`{engine}`" in line)
        refused = set(row.split("|")[2].strip().split(", "))
        supports = engine_class(engine).supports
        assert refused == {need.text for need in Need if need not in supports}
