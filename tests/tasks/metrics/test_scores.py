from ulskip_cli.tasks.metrics.scores import Scores


def test_scores_without_a_comparison():
    assert Scores({"bleu": 1.0}).against_full == {}
