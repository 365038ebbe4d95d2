from ulskip_cli.tasks.metrics.match import ExactMatch, matches
from ulskip_cli.tasks.metrics.scores import Answers


def test_case_and_white_space_are_ignored():
    assert matches([" Yes\n", "New  York", "no"], ["yes", "new york", "yes"]).tolist() == [
        100,
        100,
        0,
    ]


def test_the_share_is_compared_with_full():
    references = ["a", "b", "c", "d"]
    scores = ExactMatch().score(
        Answers(["a", "x", "x", "x"], references, references, ["a", "b", "x", "x"])
    )
    assert scores.values == {"exact_match": 25.0}
    assert scores.against_full["exact_match"]["delta"] == -25.0
