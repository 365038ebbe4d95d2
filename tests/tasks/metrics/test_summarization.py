import pytest
from rouge_score.rouge_scorer import RougeScorer

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.metrics.scores import Answers
from ulskip_cli.tasks.metrics.summarization import Rouge, one_sentence_per_line

HYPOTHESES = [
    "The mayor opened the bridge. Crowds were cheering.",
    "Prices rose\nagain",
    "Nothing here",
]
REFERENCES = [
    "Mayor opens the new bridge .\nA crowd cheered .",
    "Prices rise again .",
    "The team lost .",
]


def score(hypotheses, references, full=None, stemmer=True):
    return Rouge(stemmer).score(Answers(hypotheses, references, references, full))


@pytest.mark.parametrize("stemmer", [True, False])
def test_values_equal_rouge_score_called_directly(stemmer):
    ours = score(HYPOTHESES, REFERENCES, stemmer=stemmer)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stemmer)
    lines = [
        "The mayor opened the bridge.\nCrowds were cheering.",
        "Prices rose\nagain",
        "Nothing here",
    ]
    scored = [
        scorer.score(reference, text) for text, reference in zip(lines, REFERENCES, strict=True)
    ]
    for kind, value in ours.values.items():
        assert value == pytest.approx(100 * sum(each[kind].fmeasure for each in scored) / 3)
    assert f"stemmer={'yes' if stemmer else 'no'}" in ours.signatures["rougeL"]


def test_the_stemmer_matters():
    assert (
        score(HYPOTHESES, REFERENCES, stemmer=True).values["rouge1"]
        > score(HYPOTHESES, REFERENCES, stemmer=False).values["rouge1"]
    )


def test_against_itself_nothing_differs():
    compared = score(HYPOTHESES, REFERENCES, HYPOTHESES).against_full["rouge1"]
    assert (
        compared["delta"],
        compared["delta_low"],
        compared["delta_high"],
        compared["p_value"],
    ) == (0, 0, 0, 1)


def test_a_reference_that_rouge_cannot_read_is_refused():
    with pytest.raises(UsageError, match=r"rouge.*今天下雨.*chrf"):
        score(["天气很好"], ["今天下雨"])


def test_only_text_without_line_breaks_is_split_into_sentences():
    assert one_sentence_per_line("One. Two! Three?") == "One.\nTwo!\nThree?"
    assert one_sentence_per_line("It is 3.5 m. long") == "It is 3.5 m. long"
    assert one_sentence_per_line("a\nb. C") == "a\nb. C"
