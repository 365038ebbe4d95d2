"""The pages of committed results are those that the recipes make from the committed rows."""

import sys
from pathlib import Path

import pytest
from recipe import RECIPES, load_recipe

from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.rows import read_records

RESULTS = Path(__file__).parents[2] / "results"
SPEED = load_recipe("speed/reproduce.py")


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


def test_the_pages_of_speed_are_made_from_the_committed_rows_and_answers():
    answers = SPEED.Answers(ResultsFolder(SPEED.FOLDER))
    assert answers.page() == (SPEED.FOLDER / "README.md").read_text("utf-8")
    assert answers.headline() == (SPEED.FOLDER / "headline.md").read_text("utf-8")


def test_the_page_of_tune_is_made_from_the_committed_rows():
    recipe = load_recipe("tune/reproduce.py")
    assert recipe.page() == (recipe.FOLDER / "README.md").read_text("utf-8")


def test_the_page_of_which_layers_is_made_from_the_committed_rows_and_answers():
    recipe, folder = load_recipe("which_layers/reproduce.py"), RESULTS / "which_layers"
    page = recipe.page(folder, recipe.stored_scores(folder))
    assert page == (folder / "README.md").read_text("utf-8")


def test_the_tokens_of_answers_decide_which_are_the_same():
    answers = SPEED.Answers(ResultsFolder(SPEED.FOLDER))
    rows = [row for row in answers.rows if row.keeps_all and row.batch_size == 1]
    full = next(row for row in rows if row.engine == "transformers")
    answers.tokens = lambda row: [[1, 2], [3], [4]] if row is full else [[1, 2], [3, 3], [4]]
    assert answers.same(rows[-1], full) == "2 of 3"
