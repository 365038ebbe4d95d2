"""Statistics of records: intervals of medians, shares of the full model's quality, differences and
verdicts.

All intervals are 95%. A verdict relies on a whole interval: a value holds if its interval is above
the bound, does not hold if it is below, and is a tie if the interval includes the bound or is not
known.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Scoring
from ulskip_cli.experiments.intervals import CONFIDENCE, NORMAL, Interval
from ulskip_cli.experiments.record import MIN_FOR_STARS, Record, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics.scores import Answers

HOLDS, FAILS, TIE = "holds", "does not hold", "tie"
GATE = 0.9  # share of the full model's quality that a winner keeps
TITLES = {key: row_key.title for key, row_key in metrics.ROW_KEYS.items()}
LOWER_IS_BETTER = {key for key in TITLES if metrics.ROW_KEYS[key].lower_is_better}
MIN_BLEU = 10.0  # translations below it have little in common with their references
HIGHEST_SCORE = 100.0  # of all metrics where higher is better
MAX_SHARE = 10.0  # a larger share states only that one of the two scores is close to zero
FEW_UNITS = "too few timed units for an interval"
SAME_SCORE = 1e-6
SAME = Interval(0.0, 0.0, 0.0)  # the difference of the same answers


def verdict(interval: Interval, bound: float = 0.0) -> str:
    """Judge the claim that a value is above a bound.

    >>> ends = ((1.1, 1.3), (0.9, 1.3), (None, None))
    >>> [verdict(Interval(1.2, low, high), 1.0) for low, high in ends]
    ['holds', 'tie', 'tie']
    """
    if interval.low is None or interval.high is None:
        return TIE
    return HOLDS if interval.low > bound else FAILS if interval.high < bound else TIE


def is_faster(record: Record) -> bool:
    """Return True if the whole interval of the measured speedup is above 1x; only such a speedup is
    called a gain.
    """
    return record.speedup is not None and verdict(record.speedup, 1.0) == HOLDS


def may_gain(record: Record) -> bool:
    """Return True if a record is faster than the full model, or if its speed was not measured."""
    return record.speedup is None or is_faster(record)


def speedup_text(record: Record) -> str:
    """Format a measured speedup with its interval, or a note that the interval is unknown; say
    first if it is no gain, e.g. "no measurable gain in speed: 1.08x (0.71 to 1.36)".
    """
    assert record.speedup is not None
    unknown = record.speedup.low is None
    tie = "speed not certain: " if unknown else "no measurable gain in speed: "
    lead = {HOLDS: "", FAILS: "slower than full: ", TIE: tie}[verdict(record.speedup, 1.0)]
    return f"{lead}{_measured(record)}"


def _measured(record: Record, words: str = "") -> str:
    """Format a measured speedup with its interval; a range if it depends on the machine's state.
    `words` follow the number, e.g. ` as fast`.
    """
    assert record.speedup
    runs = f", {record.num_processes} runs" if record.num_processes > 1 else ""
    if spread := record.state_range:
        _, lowest, highest = spread
        return f"{lowest:.2f}x to {highest:.2f}x{words} (by the state of the machine{runs})"
    value, low, high = record.speedup
    ends = FEW_UNITS if low is None else f"{low:.2f} to {high:.2f}"
    return f"{value:.2f}x{words} ({ends}{runs})"


@dataclass(frozen=True)
class QualityShare:
    """The share of the full model's quality that a record keeps; if lower is better, the full
    model's value divided by the record's.

    A record passes if its share reaches the gate. The verdict is sure if the whole interval is
    above or below the gate. A share of fewer than `MIN_FOR_STARS` examples has no interval, because
    a bootstrap over so few has no power.

    A record can win if it passes surely, or if it passes and no metric is significantly worse.
    """

    metric: str  # the key of the primary metric
    value: float  # of the metric
    full: float
    share: float
    low: float | None  # ends of the share's interval, if it is known
    high: float | None
    gate: float
    has_no_loss: bool = False  # metrics were tested, and none is significantly worse

    @property
    def passes(self) -> bool:
        """True if the share reaches the gate."""
        return self.share >= self.gate

    @property
    def sure(self) -> bool:
        """True if the whole interval is above or below the gate; False if the interval is
        unknown.
        """
        end = self.low if self.passes else self.high
        return end is not None and (end >= self.gate) is self.passes

    @property
    def can_win(self) -> bool:
        """True if the whole interval is above the gate, or if the share reaches it and no loss is
        significant.
        """
        return self.passes and (self.sure or self.has_no_loss)

    @property
    def verdict(self) -> str:
        """The claim that the share reaches the gate: holds, does not hold, or a tie."""
        return TIE if not self.sure else HOLDS if self.passes else FAILS

    @property
    def word(self) -> str:
        """The verdict as one word for a table; a question mark means unsure."""
        return ("passes" if self.passes else "below") + ("" if self.sure else "?")

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
        ends = "" if self.low is None else f" ({self.low:.1%} to {self.high:.1%})"
        return f"{self.share:.1%}{ends}"


def primary(records: Iterable[Record]) -> str | None:
    """Return the key of the primary metric: the first that the records' tasks name, or else the
    decode loss, or without references the agreement with the full model.
    """
    records = list(records)
    for record in records:
        for spec in [metrics.METRIC_OF[key] for key in record.scores]:
            if spec.primary in record.scores:
                return spec.primary
    for row_key in (metrics.DECODE_LOSS, metrics.AGREEMENT):
        if any(record.value(row_key.key) is not None for record in records):
            return row_key.key
    return None


def shares(records: Sequence[Record], gate: float = GATE) -> dict[tuple[str, str], QualityShare]:
    """Judge every finished record that has a score and a full model to compare with, among records
    of one setting.

    The keys are those of the records.
    """
    records = [record for record in records if record.is_done]
    metric = primary(records)
    if metric is None:
        return {}
    fulls = {
        record.batch_size: score
        for record in records
        if record.keeps_all and (score := record.value(metric)) is not None
    }
    judged = {}
    for record in records:
        score, compared = record.value(metric), record.vs_baseline.get(metric)
        full = fulls.get(record.batch_size, next(iter(fulls.values()), None))
        if compared or record.keeps_all:  # a full model that is compared with none is the baseline
            full = compared.full if compared else score
        if score is None or not full:
            continue
        low, high = None, None
        if compared and not record.has_few_examples:
            ends = (compared.delta_low, compared.delta_high)
            low, high = sorted(_share(metric, full + end, full) for end in ends)
        share = _share(metric, score, full)
        has_no_loss = bool(tested(record)) and not worse_metrics(record)
        judged[record.key] = QualityShare(metric, score, full, share, low, high, gate, has_no_loss)
    return judged


def _share(metric: str, score: float, full: float) -> float:
    """Return the kept share of full's quality. The end of an interval can exceed the range of its
    metric; the share is clipped.
    """
    if metric in LOWER_IS_BETTER:
        share = full / score if score > 0 else MAX_SHARE
    else:
        share = min(score, HIGHEST_SCORE) / full
    return min(max(0.0, share), MAX_SHARE)


def difference(new: Record, old: Record, metric: str) -> Interval:
    """Compute `new` minus `old` (positive is better) by a paired bootstrap over answers to the same
    examples, or from the two records if too few answers are stored.
    """
    return _bootstrap(new, old, metric) or from_records(new, old, metric)


def _bootstrap(new: Record, old: Record, metric: str) -> Interval | None:
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
    answers = Answers(texts, references, sources, others)
    delta = metrics.compute_scores(scoring, answers).against_full[metric]
    return _better(Interval(delta["delta"], delta["delta_low"], delta["delta_high"]), metric)


@cache
def _hypotheses(folder: str, run_id: str) -> dict[tuple[str, str], str]:
    answers = read_answers(folder, run_id)
    return {(answer["source"], answer["reference"]): answer["hypothesis"] for answer in answers}


def read_answers(folder: str, run_id: str) -> list[Row]:
    """Read the stored answers of a run, none if it has no file; warn if one is damaged."""
    try:
        return ResultsFolder(Path(folder)).generations(run_id)
    except UsageError as error:
        print(f"ulskip: the answers of {run_id} are left out: {error}", file=sys.stderr)
        return []


def from_records(new: Record, old: Record, metric: str) -> Interval:
    """Compute `new` minus `old` from two intervals against the same full model, treated as
    independent.

    In fact they are dependent, so the result is too wide. The full model has no interval, because
    it equals itself.
    """
    value = float(new.value(metric)) - float(old.value(metric))
    sides = [(record.vs_baseline.get(metric), record) for record in (new, old)]
    halves = [(against.delta_high - against.delta_low) / 2 for against, _ in sides if against]
    full, other_full = (
        against.full if against else record.value(metric) for against, record in sides
    )
    is_known = halves and abs(full - other_full) <= SAME_SCORE
    if not is_known or new.has_few_examples or old.has_few_examples:
        return _better(Interval(value, None, None), metric)
    half = math.hypot(*halves)
    return _better(Interval(value, value - half, value + half), metric)


def _better(delta: Interval, metric: str) -> Interval:
    """Change the sign of a difference if lower is better, so that positive is better."""
    if metric not in LOWER_IS_BETTER:
        return delta
    low, high = (None if end is None else -end for end in (delta.high, delta.low))
    return Interval(-delta.value, low, high)


def speed_ratio(new: Record, old: Record) -> Interval | None:
    """Divide `new`'s measured speedup by `old`'s, with an interval; return None if a speedup was
    not measured.
    """
    if new.measured_speedup is None or old.measured_speedup is None:
        return None
    value = new.measured_speedup / old.measured_speedup
    errors = [_log_error(record) for record in (new, old)]
    if None in errors:
        return Interval(value, None, None)
    spread = math.exp(NORMAL * math.hypot(*filter(None, errors)))
    return Interval(value, value / spread, value * spread)


def _log_error(record: Record) -> float | None:
    """Return the standard error of a speedup's logarithm from its interval; None with too few
    timed units.
    """
    speedup = record.speedup
    if speedup is None or speedup.low is None or speedup.high is None:
        return None
    z = NormalDist().inv_cdf((1 + (record.speedup_interval_coverage or CONFIDENCE)) / 2)
    return math.log(speedup.high / speedup.low) / (2 * z)


def unchanged(delta: Interval) -> str:
    """Judge the claim that a score is unchanged: it holds for the same answers, and is a tie if the
    interval includes zero.
    """
    if delta in (SAME, Interval(0.0, None, None)):
        return HOLDS
    return TIE if verdict(delta) == TIE else FAILS


def within(ratio: Interval, tolerance: float) -> str:
    """Judge the claim that a ratio differs from 1 by at most a tolerance, symmetric for faster and
    slower.
    """
    if ratio.low is None or ratio.high is None:
        return TIE
    least = 1 - tolerance
    if least <= ratio.low and ratio.high <= 1 / least:
        return HOLDS
    return FAILS if ratio.low > 1 / least or ratio.high < least else TIE


def sentence(record: Record) -> str:
    """Return the result of a record in words, e.g. for the beginning of the output of a run. Speed
    and quality of two depths are two sentences, each with its depth.
    """
    if not record.is_done:
        return f"{record.label} has no result: {record.reason}."
    speed, quality = _speed_facts(record), _quality_facts(record)
    text = f"{record.label} keeps {record.summary}"
    if record.draft_tokens:
        skips = len(record.kept_layers or ()) != record.num_layers
        text = f"the full model checks {record.label}" + f" of {record.summary}" * skips
    if record.keeps_all:
        text, speed = f"the full model runs {record.num_layers} layers", []
    if speed and quality and record.timed_layers:
        timed = f"{record.label} ran {record.mean_kept_layers:.1f} layers when it was timed"
        text = f"{timed}: {', '.join(speed)}. Its answers ran {record.summary}"
        speed = []
    facts = [*speed, *quality]
    return f"{text}{': ' if facts else ''}{', '.join(facts)}."


def _speed_facts(record: Record) -> list[str]:
    if record.speedup is None:
        return []
    if not is_faster(record):
        return [speedup_text(record)]
    facts = [f"decodes {_measured(record, ' as fast')}"]
    if total := record.with_prompt:
        is_tie = total.low is not None and verdict(total, 1.0) == TIE
        gain = "no measurable gain" if is_tie else f"{total.value:.2f}x"
        facts.append(f"{gain} including the prompt")
    return facts


def _quality_facts(record: Record) -> list[str]:
    facts = []
    if record.agreement is not None:
        low, high = record.agreement_low, record.agreement_high
        is_known = low is not None and high is not None and not record.has_few_examples
        ends = f" ({low:.1%} to {high:.1%})" if is_known else ""
        facts.append(f"agrees with {record.agreement:.1%} of the full model's tokens{ends}")
    metric = primary([record])
    if metric == metrics.AGREEMENT.key:
        facts[-1] += " (no references)"
    elif metric:
        facts.append(_score_text(record, metric))
    if facts:
        plural = "s" * (record.num_examples != 1)
        facts.append(f"on {record.num_examples} example{plural} of {record.task}")
    if record.num_cut_off:
        cut = f"{record.num_cut_off} of {record.num_examples} answers were cut off"
        facts.append(f"but {cut}" if facts else cut)
    return facts


def _score_text(record: Record, metric: str) -> str:
    form, compared = metrics.ROW_KEYS[metric].number_format, record.vs_baseline.get(metric)
    text = f"{TITLES[metric]} {record.value(metric):{form}}"
    if compared is None:
        return text
    return f"{text} instead of {compared.full:{form}} ({_judged(record)})"


def _judged(record: Record) -> str:
    """Name every metric that differs significantly from the full model's."""
    if record.has_few_examples:
        return "too few examples for a test"
    if not tested(record):
        return "not tested"
    worse = worse_metrics(record)
    better = [key for key in tested(record) if record.is_significant(key) and key not in worse]
    parts = {"significantly worse": worse, "significantly better": better}
    named = [
        f"{word}: {', '.join(TITLES[key] for key in keys)}" for word, keys in parts.items() if keys
    ]
    return "; ".join(named) or "no significant difference"


def tested(record: Record) -> list[str]:
    """Return the keys of the metrics whose difference from the full model was tested."""
    compared = record.vs_baseline
    if record.has_few_examples:
        return []
    return [key for key in record.scores if key in compared and compared[key].p_value is not None]


def worse_metrics(record: Record) -> list[str]:
    """Return the keys of the metrics that are significantly worse than the full model's."""
    return [
        key
        for key in tested(record)
        if record.is_significant(key)
        and (record.vs_baseline[key].delta > 0) is (key in LOWER_IS_BETTER)
    ]
