"""Flags for output that a corpus score hides: empty, looping, cut off, of the wrong length."""

from collections.abc import Sequence

MIN_REPEATS = 4
MAX_PERIOD = 8


def flags(token_ids: Sequence[int], text: str, hit_limit: bool) -> list[str]:
    """Which of `empty`, `loop`, `hit_limit` hold for one output.

    >>> flags([5, 6, 5, 6, 5, 6, 5, 6], "a b a b a b a b", hit_limit=True)
    ['loop', 'hit_limit']
    """
    found = {"empty": not text.strip(), "loop": ends_in_loop(token_ids), "hit_limit": hit_limit}
    return [name for name, holds in found.items() if holds]


def ends_in_loop(token_ids: Sequence[int]) -> bool:
    """Whether the output ends in one block of up to 8 tokens, at least 4 times in a row."""
    for period in range(1, MAX_PERIOD + 1):
        tail = list(token_ids[-period * MIN_REPEATS :])
        if len(tail) == period * MIN_REPEATS and tail == tail[:period] * MIN_REPEATS:
            return True
    return False


def length_ratio(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Words of all hypotheses over words of all references."""
    return sum(len(h.split()) for h in hypotheses) / max(1, sum(len(r.split()) for r in references))
