import runpy
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/*.py"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_what_a_recipe_imports_exists(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    runpy.run_path(str(file), run_name="recipe")
