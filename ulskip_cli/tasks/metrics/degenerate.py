"""Detection of degenerate output that a corpus score hides: empty, repeating, truncated, too short
or too long.
"""

from collections.abc import Sequence

MIN_REPEATS = 4
MAX_PERIOD = 8


def flags(token_ids: Sequence[int], text: str, hit_max_length: bool) -> list[str]:
    """Return the flags that apply to one output: `empty`, `loop`, `hit_limit`.

    >>> flags([5, 6, 5, 6, 5, 6, 5, 6], "a b a b a b a b", hit_max_length=True)
    ['loop', 'hit_limit']
    """
    signs = {
        "empty": not text.strip(),
        "loop": ends_in_loop(token_ids),
        "hit_limit": hit_max_length,
    }
    return [name for name, holds in signs.items() if holds]


def ends_in_loop(token_ids: Sequence[int]) -> bool:
    """Return True if the output ends in a block of up to 8 tokens that is repeated at least 4
    times.
    """
    for period in range(1, MAX_PERIOD + 1):
        tail = list(token_ids[-period * MIN_REPEATS :])
        if len(tail) == period * MIN_REPEATS and tail == tail[:period] * MIN_REPEATS:
            return True
    return False


def length_ratio(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return the number of words in all hypotheses divided by the number of words in all
    references.
    """
    return sum(len(h.split()) for h in hypotheses) / max(1, sum(len(r.split()) for r in references))
