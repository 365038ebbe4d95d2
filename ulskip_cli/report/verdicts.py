"""The winners of a group by `RULE`, and warnings about points that cannot be compared."""

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
        """Return the winner in one line; a tie has no figures."""
        names = [name for name, _ in self.points]
        if not names:
            return f"{self.title}: {self.note}"
        best = ", ".join(self.points[0]) if len(names) == 1 else f"a tie of {', '.join(names)}"
        return f"{self.title}: {best}"


def winners(group: Group, gate: float) -> list[Winner]:
    """Find the fastest point of each batch size and the best quality of each target."""
    return fastest_points(group, gate) + _best_qualities(group, gate)


def fastest_points(group: Group, gate: float) -> list[Winner]:
    """Find the fastest point of each batch size."""
    timed = [share for share in _candidates(group, gate) if share.record.speedup]
    by_size = collected(timed, lambda share: share.record.batch_size)
    return [
        _winner(f"fastest at batch {size}", rivals, group, by_speed=True)
        for size, rivals in sorted(by_size.items())
    ]


def _best_qualities(group: Group, gate: float) -> list[Winner]:
    """Find the best quality of each target, at the smallest batch size."""
    asked = [share for share in _candidates(group, gate) if share.record.target_speedup]
    smallest = min((share.record.batch_size for share in asked), default=0)
    at_smallest = [share for share in asked if share.record.batch_size == smallest]
    by_target = collected(at_smallest, lambda share: share.record.target_speedup or 0.0)
    return [
        _winner(f"best {rivals[0].title} at target {target:g}x", rivals, group, by_speed=False)
        for target, rivals in sorted(by_target.items())
    ]


def _candidates(group: Group, gate: float) -> list[QualityShare]:
    """Return the points that can win: not the full models, nor points whose speed and quality are
    of different depths.
    """
    return [
        share
        for share in shares(group.records, gate)
        if not (
            share.record.keeps_all or share.record.is_own_baseline or share.record.has_two_depths
        )
    ]


def _winner(title: str, rivals: Sequence[QualityShare], group: Group, by_speed: bool) -> Winner:
    """Return the best by speed (all rivals have one) or else quality with all that tie with it, or
    the reason if none can win.
    """

    def rank(share: QualityShare) -> float:
        return share.record.measured_speedup or 0.0 if by_speed else share.share

    candidates = [share for share in rivals if share.can_win and may_gain(share.record)]
    if not candidates:
        return Winner(title, [], _why_none(rivals))
    candidates.sort(key=rank, reverse=True)
    points = []
    for share in candidates:
        pair, speedup = ComparedPair(candidates[0].record, share.record), share.record.speedup
        if by_speed and speedup:
            advantage, figure = (
                verdict(pair.speedup, 1.0),
                f"{speedup.value:.2f}x ({speedup.ends()})",
            )
        else:
            advantage, figure = verdict(pair.quality), f"{share.value:.2f}"
        if advantage == TIE:
            basis = "" if share.verdict == HOLDS else ", no significant loss"
            kept = f"{share.text()} of full's {share.title}{basis}"
            points.append((group.called(share.record), f"{figure}, {kept}"))
    return Winner(title, points)


def _why_none(rivals: Sequence[QualityShare]) -> str:
    """Tell why no rival wins. A limit that cut the examples can be raised to narrow the
    interval.
    """
    speedups = [share.record.speedup for share in rivals if share.can_win]
    if speedups:
        reason = "no measurable gain: no point that keeps the score is faster than full"
        are_known = all(speedup and speedup.low is not None for speedup in speedups)
        return reason if are_known else f"{reason} by enough timed pairs"
    score = f"{rivals[0].gate:.0%} of full's {rivals[0].title}"
    unsure = [share.record for share in rivals if share.passes]
    if not unsure:
        return f"no point keeps {score}"
    reason = f"no point surely keeps {score}"
    has_cut = any(row.config.limit and row.config.limit == row.num_examples for row in unsure)
    return f"{reason}, so raise limit to use more examples" if has_cut else reason


def caveats(group: Group) -> Iterator[str]:
    """Warn about low scores of full models, speeds of another depth than the quality, and several
    machines.
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
    """Return a sentence for each setting and batch size: the fastest point that can win, or without
    quality the one with most tokens/s.
    """
    if primary(records) is None:
        lines = list(_most_tokens(records))
    else:
        groups, lines = grouped(records), []
        for group in groups:
            name = f"{group.label}: " if len(groups) > 1 else ""
            lines += [f"{name}{winner.line()}." for winner in fastest_points(group, GATE)]
    return lines[:MAX_LEADS] or [sentence(records[-1])]


def _most_tokens(records: Sequence[Record]) -> Iterator[str]:
    """Tell for every batch size the record with most tokens/s, of those faster than full if any
    are.
    """
    timed = [record for record in records if decode_rate(record)]
    by_size = collected(timed, lambda record: record.batch_size)
    for size, rivals in sorted(by_size.items()):
        gains = list(filter(is_faster, rivals))
        best = max(gains or rivals, key=lambda record: decode_rate(record) or 0.0)
        rate = f"{decode_rate(best):.0f} tok/s in {best.decoded_by}"
        yield f"fastest at batch {size}: {rate}; {sentence(best)}"
