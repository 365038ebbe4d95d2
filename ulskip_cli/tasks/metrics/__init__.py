"""How good the answers are: thin layers over the field's own scorers, by name."""

from collections.abc import Callable, Iterable, Sequence

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.tasks.metrics import match, neural, summarization, translation
from ulskip_cli.tasks.metrics.scores import Answers, Metric, Scores, Scoring

METRICS: dict[str, Callable[[Scoring], Metric]] = {
    "bleu": translation.bleu,
    "chrf": translation.chrf,
    "ter": translation.ter,
    "rouge": summarization.rouge,
    "exact_match": match.exact_match,
    "comet": neural.comet,
    "bertscore": neural.bertscore,
}
"""By name, how each is made. `rouge` gives four values, every other the one of its own name."""


def made(scoring: Scoring, references: Sequence[str] = ()) -> list[Metric]:
    """The metrics that a task names, found to be ready for its references.

    Raises:
        UsageError: a name is unknown, a package is missing, or a metric cannot read the references.
    """
    if not scoring.metrics:
        raise UsageError(f"expected at least one metric in task.metrics; known: {', '.join(METRICS)}")
    found = [METRICS[require_choice("metric", name, METRICS)](scoring) for name in dict.fromkeys(scoring.metrics)]
    for metric in found:
        metric.ready(references)
    return found


def score(scoring: Scoring, answers: Answers) -> Scores:
    """All of a task's metrics of some answers."""
    return merged(metric.score(answers) for metric in made(scoring))


def merged(scores: Iterable[Scores]) -> Scores:
    """Several metrics' scores as one."""
    values: Scores = Scores({}, {}, {})
    for one in scores:
        values.values.update(one.values)
        values.signatures.update(one.signatures)
        values.against_full.update(one.against_full)
    return values
