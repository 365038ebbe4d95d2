"""The pages of committed results are those that the recipes make from the committed rows."""

import sys
from pathlib import Path

import pytest
from recipe import RECIPES, load_recipe

from ulskip_cli.report.rows import read_records

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("name", ["multi30k", "real_model", "skip_adapters"])
def test_the_committed_page_is_made_from_the_committed_rows(name, monkeypatch):
    folder, is_report = RESULTS / name, name == "multi30k"
    monkeypatch.syspath_prepend(RECIPES / name)
    known = {*sys.modules}
    recipe = load_recipe(f"{name}/{'report' if is_report else 'reproduce'}.py")
    rows = recipe.Rows(folder) if is_report else read_records([folder])
    assert recipe.page(rows) == (folder / "README.md").read_text("utf-8")
    for module in {"rows", "tables"} & sys.modules.keys() - known:  # other recipes have these names
        del sys.modules[module]
