"""The number of drafts that are checked together, chosen from measured costs and the observed
acceptance.
"""

from collections.abc import Sequence

from ulskip_cli.core.config_schema import AUTO

MAX_CHECK = 8  # tokens in a check whose cost is measured, the last accepted token included
PRIOR_ACCEPTED, PRIOR_TESTED = 3.0, 4.0  # initial counts: 3 of 4 drafts accepted
DECAY = 0.9  # weight of earlier checks after each check
CREDIT = 3.0  # plain steps that drafts may lose before they have to pay
MARGIN = 0.015  # share of the time of plain steps that is spent on trying drafts that did not pay


class DraftLength:
    """A fixed draft length, or for `auto` the one that gives the most tokens per second; 0 if no
    drafts pay.
    """

    def __init__(self, setting: int | str, draft_cost: float, check_costs: Sequence[float]) -> None:
        """The costs are times in plain steps: of one draft, and of checks of 1, 2, ... tokens."""
        self.setting, self.draft_cost, self.check_costs = setting, draft_cost, check_costs
        self._accepted, self._tested = PRIOR_ACCEPTED, PRIOR_TESTED
        self._credit = CREDIT

    def cost(self, count: int) -> float:
        """Return the time of `count` drafts and their check; larger checks than were measured cost
        in proportion.
        """
        known = min(count + 1, len(self.check_costs))
        return count * self.draft_cost + self.check_costs[known - 1] * (count + 1) / known

    def next(self) -> int:
        """Return the number of tokens to draft. If no drafts seem to pay, one is tried as long as
        there is credit.
        """
        if self.setting != AUTO:
            return int(self.setting)
        acceptance = self._accepted / self._tested
        allowed = [
            count
            for count in range(1, len(self.check_costs))
            if self.cost(count) - 1 <= self._credit
        ]
        # Tokens per check: (1 - a^(k+1)) / (1 - a), Sec. 3.1 of arXiv:2211.17192.
        rates = {
            count: sum(acceptance**i for i in range(count + 1)) / self.cost(count)
            for count in [0, *allowed]
        }
        return max(rates, key=rates.__getitem__) or len(allowed[:1])

    def update(self, accepted: int, drafted: int) -> None:
        """Count a check, or a plain step as 0 of 0; drafts after the first rejected draft do not
        count as tested.
        """
        if drafted:
            self._accepted = DECAY * self._accepted + accepted
            self._tested = DECAY * self._tested + min(accepted + 1, drafted)
        self._credit = min(
            CREDIT, self._credit + (1 + MARGIN) * (accepted + 1) - self.cost(drafted)
        )
