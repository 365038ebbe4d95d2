import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics.scores import Answers, Scoring

ANSWERS = Answers(["the cat sat here today"] * 3, ["the cat sat here now"] * 3, ["x"] * 3)
WITHOUT_A_MODEL = tuple(name for name, spec in metrics.METRICS.items() if not spec.is_neural)


def test_a_metric_scores_the_same_alone_and_among_others():
    together = metrics.score(Scoring(WITHOUT_A_MODEL, "en"), ANSWERS)
    for name in WITHOUT_A_MODEL:
        alone = metrics.score(Scoring((name,), "en"), ANSWERS)
        assert alone.values.items() <= together.values.items()
        assert alone.signatures.items() <= together.signatures.items()


@pytest.mark.parametrize("name", WITHOUT_A_MODEL)
def test_a_metric_fills_the_row_keys_of_its_entry(name):
    spec = metrics.METRICS[name]
    scores = metrics.score(Scoring((name,), "en"), ANSWERS)
    assert list(scores.values) == [row_key.key for row_key in spec.row_keys]
    assert scores.signatures.keys() == scores.values.keys()
    assert spec.primary in scores.values


def test_every_row_key_belongs_to_one_metric():
    keys = [row_key.key for spec in metrics.METRICS.values() for row_key in spec.row_keys]
    assert len(set(keys)) == len(keys)
    assert metrics.metric_keys() == tuple(keys)
    assert set(metrics.quality_keys()) == {*keys, "decode_loss"}
    assert all(metrics.row_key(key).column_title for key in metrics.quality_keys())


def test_primary_keys_are_preferred_and_the_decode_loss_comes_last():
    keys = metrics.quality_keys()
    assert keys.index("rougeL") < keys.index("rouge1")
    assert (keys[0], keys[-1]) == ("bleu", "decode_loss")


@pytest.mark.parametrize(
    ("key", "name", "is_neural"),
    [("rougeLsum", "rouge", False), ("chrf", "chrf", False), ("comet", "comet", True)],
)
def test_the_metric_of_a_row_key(key, name, is_neural):
    spec = metrics.metric_of(key)
    assert (spec.name, spec.is_neural) == (name, is_neural)


def test_only_error_measures_are_better_when_lower():
    assert {key for key in metrics.quality_keys() if metrics.row_key(key).lower_is_better} == {
        "ter",
        "decode_loss",
    }
    assert metrics.metric_of("decode_loss") is None


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(UsageError, match=r"'rogue'.*'rouge'"):
        metrics.make_metrics(Scoring(("rogue",)))


def test_an_empty_list_of_metrics_is_refused():
    with pytest.raises(UsageError, match=r"task\.metrics"):
        metrics.make_metrics(Scoring(()))


def test_a_metric_named_twice_is_made_once():
    assert len(metrics.make_metrics(Scoring(("bleu", "bleu")))) == 1
