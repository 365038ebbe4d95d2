import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics.scores import Answers, Scoring

ANSWERS = Answers(["the cat sat here today"] * 3, ["the cat sat here now"] * 3, ["x"] * 3)
ALWAYS_THERE = ("bleu", "chrf", "ter", "rouge", "exact_match")


def test_each_metric_gives_what_it_gives_among_others():
    together = metrics.score(Scoring(ALWAYS_THERE, "en"), ANSWERS)
    for name in ALWAYS_THERE:
        alone = metrics.score(Scoring((name,), "en"), ANSWERS)
        assert alone.values.items() <= together.values.items()
        assert alone.signatures.items() <= together.signatures.items()
    assert set(together.values) == {"bleu", "chrf", "ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match"}


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="unknown metric 'rogue'; did you mean 'rouge'"):
        metrics.made(Scoring(("rogue",)))


def test_no_metric_is_refused():
    with pytest.raises(UsageError, match="at least one metric"):
        metrics.made(Scoring(()))


def test_asking_twice_is_asking_once():
    assert len(metrics.made(Scoring(("bleu", "bleu")))) == 1
