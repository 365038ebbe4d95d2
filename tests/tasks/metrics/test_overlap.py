import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Scoring
from ulskip_cli.tasks.metrics import ScoredTexts, compare_segments
from ulskip_cli.tasks.metrics.overlap import ExactMatch, Rouge

MAYOR = "The mayor opened the bridge. Crowds were cheering."
HYPOTHESES = [MAYOR, "Prices rose\nagain", "Nothing here"]
REFERENCES = ["Mayor opens the new bridge .\nA crowd cheered .", "Prices rise again .", "It lost ."]


def score(hypotheses, references):
    answers = ScoredTexts(hypotheses, references, references)
    return Rouge("rouge", Scoring(("rouge",))).score(answers)


def test_values_equal_rouge_score_called_directly():
    ours = score(HYPOTHESES, REFERENCES)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    lines = [MAYOR.replace(". ", ".\n"), *HYPOTHESES[1:]]
    scored = list(map(scorer.score, REFERENCES, lines))
    for kind, value in ours.values.items():
        assert value == pytest.approx(100 * sum(each[kind].fmeasure for each in scored) / 3)
    assert "stemmer=yes" in ours.signatures["rougeL"]


def test_a_reference_that_rouge_cannot_read_is_refused():
    with pytest.raises(UsageError, match=r"rouge.*今天下雨.*chrf"):
        score(["天气很好"], ["今天下雨"])


def test_exact_match_ignores_case_and_white_space_and_is_compared_with_full():
    references = ["new york", "b", "c", "d"]
    texts, full = [" New  York\n", "x", "x", "x"], ["new york", "b", "x", "x"]
    metric = ExactMatch("exact_match", Scoring(("exact_match",)))
    scores = metric.score(ScoredTexts(texts, references, references, full))
    assert scores.values == {"exact_match": 25.0}
    assert scores.against_full["exact_match"]["delta"] == -25.0


values = st.lists(st.floats(0, 100), min_size=2, max_size=30)


def test_a_clear_difference_has_an_interval_without_zero():
    rng = np.random.default_rng(0)
    full = rng.uniform(20, 40, 100)
    compared = compare_segments(full - 5 + rng.normal(0, 1, 100), full)
    assert compared["delta_low"] < compared["delta"] < compared["delta_high"] < 0


@given(values, st.sampled_from([0, 1]))
def test_a_constant_difference_has_no_width(values, constant):
    compared = compare_segments(np.array(values) + constant, np.array(values))
    assert np.allclose([compared[key] for key in ("delta", "delta_low", "delta_high")], constant)
