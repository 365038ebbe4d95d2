from recipe import load_recipe
from report_rows import sweep_row

from ulskip_cli.experiments.results import ResultsFolder

lossless = load_recipe("lossless/reproduce.py")
TEXTS = {"source": "s", "reference": "r", "hypothesis": "h"}


def test_the_page_counts_answers_that_differ(tmp_path):
    folder = ResultsFolder(tmp_path)
    points = {"full": (0, [1, 2, 3]), "same": (2, [1, 2, 3]), "other": (7, [1, 2, 4])}
    for name, (draft_tokens, ids) in points.items():
        folder.save_generations(name, [{**TEXTS, "token_ids": [token]} for token in ids])
        drafted = {"acceptance_rate": 0.75, "mean_accepted_length": 2.5} if draft_tokens else {}
        config = {"decoding": {"draft_tokens": draft_tokens}}
        values = {"id": name, "baseline_id": "full", "engine": "torch", "config": config, **drafted}
        folder.append(sweep_row(num_examples=3, **values))
    page = lossless.page(folder)
    assert "| 1 | layers | 3/6 | 2 | 0.75 | 2.50 | 1.80 | 1.78 to 1.82 | 0/3 |" in page
    assert "| 3/6 | 7 | 0.75 | 2.50 | 1.80 | 1.78 to 1.82 | 1/3 |" in page
