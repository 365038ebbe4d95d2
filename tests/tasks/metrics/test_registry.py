import pytest

from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics.scores import Answers, Scoring

ANSWERS = Answers(["the cat sat here today"] * 3, ["the cat sat here now"] * 3, ["x"] * 3)
WITHOUT_A_MODEL = tuple(name for name, spec in metrics.METRICS.items() if not spec.is_neural)


@pytest.mark.parametrize("name", WITHOUT_A_MODEL)
def test_a_metric_fills_the_row_keys_of_its_entry(name):
    spec = metrics.METRICS[name]
    scores = metrics.compute_scores(Scoring((name,), "en"), ANSWERS)
    assert list(scores.values) == [row_key.key for row_key in spec.row_keys]
    assert scores.signatures.keys() == scores.values.keys()
    assert spec.primary in scores.values
