"""How many tokens to draft before the next check."""

from ulskip_cli.core.config_schema import AUTO
from ulskip_cli.strategies.cost import drafting_speedup

MOST = 12
# Before anything is seen: 3 of 4 accepted. What was seen counts a tenth less with every check.
PRIOR_ACCEPTED, PRIOR_CHECKED = 3.0, 4.0
MEMORY = 0.9


class DraftLength:
    """A fixed number, or the one that should buy most at the acceptance seen so far; `cost.drafting_speedup` says what."""

    def __init__(self, asked: int | str, draft_cost: float) -> None:
        """Begin a batch.

        Args:
            asked: the number, or `auto`.
            draft_cost: a drafting step's share of a full step.
        """
        self.asked, self.draft_cost = asked, draft_cost
        self._accepted, self._checked = PRIOR_ACCEPTED, PRIOR_CHECKED

    def next(self) -> int:
        """Tokens to draft now, at least 1."""
        if self.asked != AUTO:
            return int(self.asked)
        acceptance = self._accepted / self._checked
        return max(range(1, MOST + 1), key=lambda k: drafting_speedup(acceptance, k, self.draft_cost))

    def saw(self, accepted: int, drafted: int) -> None:
        """After a check; of the drafts behind the first that was not accepted nothing is known."""
        self._accepted = MEMORY * self._accepted + accepted
        self._checked = MEMORY * self._checked + min(accepted + 1, drafted)
