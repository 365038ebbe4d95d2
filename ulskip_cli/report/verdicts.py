"""The winners of a group, and warnings about points that cannot be compared.

A winner is the fastest point of a batch size or the best quality of a target, by the rule that
`RULE` states.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.statistics import (
    GATE,
    HOLDS,
    TIE,
    QualityShare,
    is_faster,
    may_gain,
    primary,
    sentence,
    shares,
    verdict,
)
from ulskip_cli.report.columns import decode_rate
from ulskip_cli.report.pairs import ComparedPair
from ulskip_cli.report.rows import Group, collected, grouped

MAX_LEADS = 3  # sentences before the table of a sweep
RULE = (
    "A winner keeps {gate} of the full model's score, either by its whole 95% interval or without a"
    " significant loss in any metric, and is faster by the whole interval of its speedup. Points"
    " that the intervals do not separate are a tie."
)


@dataclass(frozen=True)
class Winner:
    """The best of the points that can win."""

    title: str
    points: list[tuple[str, str]]  # names and figures of all that tie, best first
    note: str = ""  # why no point can win

    def line(self) -> str:
        """Return the winner in one line; a tie has names without figures."""
        names = [name for name, _ in self.points]
        if not names:
            return f"{self.title}: {self.note}"
        best = ", ".join(self.points[0]) if len(names) == 1 else f"a tie of {', '.join(names)}"
        return f"{self.title}: {best}"


def winners(group: Group, gate: float) -> list[Winner]:
    """Find the winners of a group by `RULE`; a point with the speed of one depth and the quality of
    another cannot win.
    """
    judged = [
        share
        for share in shares(group.records, gate)
        if not (share.record.keeps_all or share.record.is_own_baseline)
        and not share.record.has_two_depths
    ]
    timed = [share for share in judged if share.record.speedup]
    asked = [share for share in judged if share.record.target_speedup]
    smallest = min((share.record.batch_size for share in asked), default=0)
    asked = [share for share in asked if share.record.batch_size == smallest]
    by_size = collected(timed, lambda share: share.record.batch_size)
    by_target = collected(asked, lambda share: share.record.target_speedup or 0.0)
    fastest = [
        _winner(f"fastest at batch {size}", rivals, group, by_speed=True)
        for size, rivals in sorted(by_size.items())
    ]
    best = [
        _winner(f"best {rivals[0].title} at target {target:g}x", rivals, group, by_speed=False)
        for target, rivals in sorted(by_target.items())
    ]
    return fastest + best


def _winner(title: str, rivals: Sequence[QualityShare], group: Group, by_speed: bool) -> Winner:
    """Rank the rivals by speed or else by quality, and return the best with all that tie with
    it; without a rival that can win, return the reason.
    """

    def rank(share: QualityShare) -> float:
        return share.record.measured_speedup or 0.0 if by_speed else share.share

    passing = [share for share in rivals if share.can_win]
    ranked = sorted((share for share in passing if may_gain(share.record)), key=rank, reverse=True)
    if not ranked:
        return Winner(title, [], _why_none(rivals, passing))
    points = []
    for share in ranked:
        pair = ComparedPair(ranked[0].record, share.record)
        if (verdict(pair.speedup, 1.0) if by_speed else verdict(pair.quality)) == TIE:
            figure, speedup = f"{share.value:.2f}", share.record.speedup
            if by_speed and speedup:
                figure = f"{speedup.value:.2f}x ({speedup.ends()})"
            basis = "" if share.verdict == HOLDS else ", no significant loss"
            kept = f"{share.text()} of full's {share.title}{basis}"
            points.append((group.called(share.record), f"{figure}, {kept}"))
    return Winner(title, points)


def _why_none(rivals: Sequence[QualityShare], passing: Sequence[QualityShare]) -> str:
    """Tell why no rival can win: those that keep the score (`passing`) are not faster, or none
    keeps it. A limit that cut the examples can be raised to narrow the interval.
    """
    if passing:
        clocks = [share.record.speedup for share in passing]
        are_known = all(clock and clock.low is not None for clock in clocks)
        tested = "" if are_known else " by enough timed pairs"
        return f"no measurable gain: no point that keeps the score is faster than full{tested}"
    unsure, first = [share for share in rivals if share.passes], rivals[0]
    note = f"no point {'surely ' * bool(unsure)}keeps {first.gate:.0%} of full's {first.title}"
    limits = [(share.record.config.limit, share.record.num_examples) for share in unsure]
    has_more = any(limit and limit == count for limit, count in limits)
    return f"{note}{', so raise limit to use more examples' * has_more}"


def caveats(group: Group) -> Iterator[str]:
    """Yield a warning for every low score of a full model, for every point whose speed is of
    another depth than its quality, and for rows that were timed on several machines.
    """
    for share in shares(group.records):
        if share.caveat:
            yield f"{share.record.model}: {share.caveat}; use a stronger model"
    for record in group.done:
        if record.has_two_depths:
            timed = "timed" if record.speedup else "planned"
            yield (
                f"{group.called(record)} at batch {record.batch_size} was {timed} with a mean of"
                f" {record.mean_kept_layers:.1f} layers, and its answers ran {record.summary}, so"
                " its speed and its quality do not belong together: it cannot win, and is not in"
                " the plot"
            )
    machines = {
        record.environment.machine
        for record in group.done
        if record.environment and record.measured_speedup
    }
    if len(machines) > 1:
        yield (
            f"these rows were timed on several machines ({'; '.join(sorted(machines))}), on which"
            " speedups differ; time all on one to compare them"
        )


def lead(records: Sequence[Record]) -> list[str]:
    """Return the result of a sweep in one sentence for every setting and batch size: the fastest
    point that can win; without quality, for every batch size the point with most tokens/s among
    those that are measurably faster than full, if any are.
    """
    groups = grouped(records)
    lines = [
        f"{f'{group.label}: ' * (len(groups) > 1)}{winner.line()}."
        for group in groups
        for winner in winners(group, GATE)
        if winner.title.startswith("fastest")
    ]
    if primary(records) is None:
        lines = list(_fastest(records))
    return lines[:MAX_LEADS] or [sentence(records[-1])]


def _fastest(records: Sequence[Record]) -> Iterator[str]:
    """Yield for every batch size the record with most tokens/s, of those faster than full if any
    are.
    """
    timed = [record for record in records if decode_rate(record)]
    by_size = collected(timed, lambda record: record.batch_size)
    for size, rivals in sorted(by_size.items()):
        gains = list(filter(is_faster, rivals))
        best = max(gains or rivals, key=lambda record: decode_rate(record) or 0.0)
        rate = f"{decode_rate(best):.0f} tok/s in {best.decoded_by}"
        yield f"fastest at batch {size}: {rate}; {sentence(best)}"
