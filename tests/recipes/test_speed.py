from recipe import load_recipe

from ulskip_cli.experiments.results import ResultsFolder

speed = load_recipe("speed/reproduce.py")


def test_the_committed_pages_are_made_from_the_committed_rows_and_answers():
    answers = speed.Answers(ResultsFolder(speed.FOLDER))
    assert answers.page() == (speed.FOLDER / "README.md").read_text("utf-8")
    assert answers.headline() == (speed.FOLDER / "headline.md").read_text("utf-8")


def test_the_tokens_of_answers_decide_which_are_the_same():
    answers = speed.Answers(ResultsFolder(speed.FOLDER))
    rows = [row for row in answers.rows if row.keeps_all and row.batch_size == 1]
    full = next(row for row in rows if row.engine == "transformers")
    answers.tokens = lambda row: [[1, 2], [3], [4]] if row is full else [[1, 2], [3, 3], [4]]
    assert answers.same(rows[-1], full) == "2 of 3"
