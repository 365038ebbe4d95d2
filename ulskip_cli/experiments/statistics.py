"""Statistics of records: intervals of medians, shares of the full model's quality, differences and
verdicts.

All intervals are 95%. A verdict relies on a whole interval: a value holds if its interval is above
the bound, does not hold if it is below, and is a tie if the interval includes the bound or is not
known.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ulskip_cli.core.engines import AUTO
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.task import Scoring
from ulskip_cli.experiments.intervals import CONFIDENCE, Interval
from ulskip_cli.experiments.record import MIN_FOR_STARS, Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics import ScoredTexts

HOLDS, FAILS, TIE = "holds", "does not hold", "tie"
GATE = 0.9  # share of the full model's quality that a winner keeps
TITLES = {key: row_key.title for key, row_key in metrics.ROW_KEYS.items()}
MIN_BLEU = 10.0  # translations below it have little in common with their references
SAME_SCORE = 1e-6
SAME = Interval(0.0, 0.0, 0.0)  # the difference of the same answers
COPIES = 0.25  # share of copied tokens from which on a sentence tells the agreement on the others
CHANGES = {
    FAILS: "significantly worse",
    HOLDS: "significantly better",
    TIE: "no significant difference",
    None: "too few examples for a test",
}


def verdict(interval: Interval | None, bound: float = 0.0) -> str:
    """Judge the claim that a value is above a bound; a value that was not measured is a tie.

    >>> ends = ((1.1, 1.3), (0.9, 1.3), (None, None))
    >>> [verdict(Interval(1.2, low, high), 1.0) for low, high in ends]
    ['holds', 'tie', 'tie']
    """
    if interval is None or interval.low is None or interval.high is None:
        return TIE
    return HOLDS if interval.low > bound else FAILS if interval.high < bound else TIE


def reaches(kept: Interval, gate: float) -> str:
    """Judge the claim that a share reaches a gate, to which it may be equal."""
    return verdict(kept, math.nextafter(gate, 0.0))


def is_faster(record: Record) -> bool:
    """Return True if the whole interval of the measured speedup is above 1x; only such a speedup is
    called a gain.
    """
    return verdict(record.speedup, 1.0) == HOLDS


def may_gain(record: Record) -> bool:
    """Return True if a record is faster than the full model, or if its speed was not measured."""
    return record.speedup is None or is_faster(record)


@dataclass(frozen=True)
class QualityShare:
    """The share of the full model's quality that a record keeps, and the gate that judges it."""

    record: Record
    interval: Interval
    gate: float = GATE

    @property
    def metric(self) -> str:
        """The key of the primary metric."""
        return str(self.record.primary)

    @property
    def value(self) -> float:
        """The score."""
        return float(self.record.value(self.metric))

    @property
    def full(self) -> float:
        """The full model's score."""
        compared = self.record.vs_baseline.get(self.metric)
        return compared.full if compared else self.value

    @property
    def share(self) -> float:
        """The share without its interval."""
        return self.interval.value

    @property
    def passes(self) -> bool:
        """True if the share reaches the gate."""
        return self.share >= self.gate

    @property
    def verdict(self) -> str:
        """The claim that the share reaches the gate: holds, does not hold, or a tie if the interval
        includes the gate or is unknown.
        """
        return reaches(self.interval, self.gate)

    @property
    def can_win(self) -> bool:
        """True if the share reaches the gate, and either its whole interval does, or metrics were
        tested and none is significantly worse.
        """
        changes = tested_changes(self.record).values()
        has_no_loss = bool(changes) and FAILS not in changes
        return self.passes and (self.verdict == HOLDS or has_no_loss)

    @property
    def title(self) -> str:
        """The name of the metric."""
        return TITLES[self.metric]

    @property
    def caveat(self) -> str:
        """A warning if the full model's score is so low that a share of it says nothing; otherwise
        empty.
        """
        text = (
            f"a share of full's BLEU of {self.full:.1f} says little about quality, because it is"
            f" below {MIN_BLEU:g}"
        )
        return text * (self.metric == "bleu" and self.full < MIN_BLEU)

    def text(self) -> str:
        """Format the share with its interval."""
        return self.interval.text(".1%")


def primary(records: Iterable[Record]) -> str | None:
    """Return the key of the primary metric of records of one task."""
    return next((metric for record in records if (metric := record.primary)), None)


def shares(records: Iterable[Record], gate: float = GATE) -> list[QualityShare]:
    """Judge every finished record that has a score and a full model to compare with."""
    done = (record for record in records if record.is_done)
    return [QualityShare(record, kept, gate) for record in done if (kept := record.quality_share)]


def difference(new: Record, old: Record, metric: str) -> Interval:
    """Compute `new` minus `old` (positive is better) by a paired bootstrap over answers to the same
    examples, or from the two records if too few answers are stored.
    """
    return _bootstrap(new, old, metric) or from_records(new, old, metric)


def _bootstrap(new: Record, old: Record, metric: str) -> Interval | None:
    """Return the difference over the examples that both records answered: SAME if the answers are
    equal, or None if too few are shared or reports do not compute the metric.
    """
    # of `new` and `old`: hypotheses by (source, reference)
    sides = [_hypotheses(record.folder, record.id) for record in (new, old)]
    shared = [example for example in sides[0] if example in sides[1]]
    if not shared or len(shared) < min(MIN_FOR_STARS, max(map(len, sides))):
        return None
    texts, others = ([side[example] for example in shared] for side in sides)
    if texts == others:
        return SAME
    spec = metrics.METRIC_OF.get(metric)
    if len(shared) < MIN_FOR_STARS or spec is None or not spec.in_reports:
        return None
    language = new.config.task.scoring().target_language
    scoring = Scoring((spec.name,), language)
    sources, references = map(list, zip(*shared, strict=True))
    answers = ScoredTexts(texts, references, sources, others)
    delta = metrics.compute_scores(scoring, answers).against_full[metric]
    return Interval(delta["delta"], delta["delta_low"], delta["delta_high"])


@cache
def _hypotheses(folder: str, run_id: str) -> dict[tuple[str, str], str]:
    """Return the stored hypotheses of a run by (source, reference)."""
    answers = read_answers(folder, run_id)
    return {(answer["source"], answer["reference"]): answer["hypothesis"] for answer in answers}


def read_answers(folder: str, run_id: str) -> list[JsonObject]:
    """Read the stored answers of a run, none if it has no file; warn if one is damaged."""
    try:
        return ResultsFolder(Path(folder)).generations(run_id)
    except UsageError as error:
        print(f"ulskip: the answers of {run_id} are left out: {error}", file=sys.stderr)
        return []


def from_records(new: Record, old: Record, metric: str) -> Interval:
    """Compute `new` minus `old` from two intervals against the same full model, treated as
    independent.

    In fact they are dependent, so the result is too wide.
    """
    new_score, new_full = _score(new, metric)
    old_score, old_full = _score(old, metric)
    gain = new_score.minus(old_score)
    if metric == metrics.DECODE_LOSS.key:  # lower is better
        gain = old_score.minus(new_score)
    is_compared = metric in new.vs_baseline or metric in old.vs_baseline
    has_same_full = abs(new_full - old_full) <= SAME_SCORE
    has_few_examples = new.has_few_examples or old.has_few_examples
    is_known = is_compared and has_same_full and not has_few_examples
    return gain if is_known else Interval(gain.value)


def _score(record: Record, metric: str) -> tuple[Interval, float]:
    """Return a record's score with its interval, and the full model's score. A record without a
    comparison is the full model, whose interval has no width, because it equals itself.
    """
    score, compared = record.value(metric), record.vs_baseline.get(metric)
    if not compared:
        return Interval(score, score, score), score
    full = compared.full
    return Interval(score, full + compared.delta_low, full + compared.delta_high), full


def speed_ratio(new: Record, old: Record, confidence: float = CONFIDENCE) -> Interval | None:
    """Divide `new`'s measured speedup by `old`'s; return None if one was not measured. A row
    stores the 95% interval alone: that of another confidence is computed from the timed pairs,
    and a row without pairs keeps the stored one.
    """
    logs = []  # a ratio is a difference of logarithms, whose intervals can be subtracted
    for record in (new, old):
        speedup, pairs = record.speedup, record.pairs
        if speedup is None:
            return None
        if confidence != CONFIDENCE and speedup.low is not None and pairs and pairs.full:
            speedup = pairs.speedup(confidence=confidence)
        logs.append(speedup.through(math.log))
    return logs[0].minus(logs[1]).through(math.exp)


def sentence(record: Record) -> str:
    """Return the result of a record in words: depth, speed, score and agreement. If the timed pairs
    ran another mean depth than the evaluated answers, speed and quality are two sentences.
    """
    if not record.is_done:
        return f"{record.label} has no result: {record.reason}."
    speed = [] if record.is_own_baseline else _speed_text(record)
    quality = [*score_text(record), *_agreement_text(record)]
    if speed and quality and record.has_two_depths:
        timed = f"{record.label} ran {record.mean_kept_layers:.1f} layers when it was timed"
        return f"{timed}: {speed[0]}. Its answers ran {record.summary}: {'; '.join(quality)}."
    facts = [*speed, *quality]
    return f"{_subject(record)}{': ' if facts else ''}{'; '.join(facts)}."


def _subject(record: Record) -> str:
    """Tell which model runs, and with which layers."""
    if record.keeps_all and record.config.crosses_engines:
        return f"{record.model} in {record.decoded_by} runs all {record.num_layers} layers"
    if record.keeps_all:
        return f"the full model runs {record.num_layers} layers"
    if record.draft_tokens and record.strategy == "full":
        has_drafts = record.acceptance_rate is not None
        made = f"checks {record.label}" if has_drafts else "made no drafts, which did not pay"
        return f"the full model {made}"
    keeps = f"{record.label} keeps {record.summary}"
    if record.config.engine.name in (AUTO, "torch"):
        return keeps
    return f"{keeps} in {record.decoded_by}"


def _speed_text(record: Record) -> list[str]:
    """Tell the measured speedup, and whether it is a gain, also with the prompt."""
    if record.speedup is None:
        return []
    value = f"{record.speedup.value:.2f}x"
    if record.speedup.low is None:
        return [f"{value} is not certain, because too few units were timed"]
    engine = f" in {record.full_engine}" if record.full_engine else ""
    if not is_faster(record):
        is_tie = verdict(record.speedup, 1.0) == TIE
        slower = f"decodes {value} as fast, slower than the full model{engine}"
        return [f"no measurable gain in speed ({value})" if is_tie else slower]
    total = record.with_prompt
    text = f"decodes {value} as fast"
    if engine:
        text += f" as the full model{engine}"
    if total and total.low is not None and verdict(total, 1.0) != HOLDS:
        text += ", no measurable gain including the prompt"
    return [text]


def score_text(record: Record) -> list[str]:
    """Tell the primary score, its share of the full model's with the interval, and whether they
    differ; nothing for a record without a score.
    """
    metric = record.primary
    if metric is None or metric == metrics.AGREEMENT.key:
        return []
    form, compared = metrics.ROW_KEYS[metric].number_format, record.vs_baseline.get(metric)
    text = f"{TITLES[metric]} {record.value(metric):{form}}"
    if compared is None:
        return [text]
    if not compared.delta:
        return [f"{text}, like the full model's"]
    kept, changes = record.quality_share, tested_changes(record)
    if kept is None:
        text += f" instead of {compared.full:{form}}"
    else:
        text += f" is {kept.text('.0%')} of the full model's"
    change = changes.get(metric)
    worse = [TITLES[key] for key, other in changes.items() if other == FAILS]
    if change == TIE and worse:
        return [f"{text}, but significantly worse {' and '.join(worse)}"]
    if change == TIE and kept and kept.low is not None and kept.low < GATE:
        return [f"{text}, too few examples to tell a difference"]
    return [f"{text}, {CHANGES[change]}"]


def _agreement_text(record: Record) -> list[str]:
    """Tell the agreement; without references it is the score and has an interval."""
    if record.agreement is None:
        return []
    text = f"{record.agreement:.1%} of the full model's tokens"
    if record.primary == metrics.AGREEMENT.key:
        ends = () if record.has_few_examples else (record.agreement_low, record.agreement_high)
        score = Interval(record.agreement, *ends).text(".1%")
        text = f"{score} of the full model's tokens (no references)"
    elif (record.copied_share or 0) >= COPIES and record.new_agreement is not None:
        text = f"{record.new_agreement:.1%} of the full model's tokens that do not copy the prompt"
    return [f"agrees with {text}"]


def tested_changes(record: Record) -> dict[str, str]:
    """Return, for the key of every metric that was tested against the full model, the verdict on
    the claim that it is significantly better.
    """
    changes = dict[str, str]()
    for key in record.scores:
        compared = record.vs_baseline.get(key)
        if compared and not record.has_few_examples:
            delta = Interval(compared.delta, compared.delta_low, compared.delta_high)
            changes[key] = verdict(delta)
    return changes
