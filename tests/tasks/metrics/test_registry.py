import pytest

from ulskip_cli.core.config_reference import group_keys
from ulskip_cli.core.task import Scoring
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics import ScoredTexts

ANSWERS = ScoredTexts(["the cat sat here at 3"] * 3, ["the cat sat there at 3"] * 3, ["x"] * 3)
OF_TEXTS = tuple(name for name, spec in metrics.METRICS.items() if spec.in_reports)


@pytest.mark.parametrize("task", ["wmt", "jsonl", "cnn_dm", "humaneval"])
def test_the_help_of_every_task_names_all_metrics(task):
    (key,) = (key for key in group_keys("task", task) if key.name == "task.metrics")
    assert key.meaning == f"metrics: {', '.join(metrics.METRICS)}"


@pytest.mark.parametrize("name", OF_TEXTS)
def test_a_metric_fills_the_row_keys_of_its_entry(name):
    spec = metrics.METRICS[name]
    scores = metrics.compute_scores(Scoring((name,), "en"), ANSWERS)
    assert list(scores.values) == [row_key.key for row_key in spec.row_keys]
    assert scores.signatures.keys() == scores.values.keys()
    assert spec.primary in scores.values
