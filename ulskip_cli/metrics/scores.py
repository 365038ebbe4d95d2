"""What scoring returns, whatever the task."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scores:
    """Metric values by row key, the signatures that make them repeatable, and the paired comparison with full.

    Attributes:
        values: for example `bleu`.
        signatures: the scorer's own, by metric.
        against_full: by metric `delta`, its 95% interval `delta_low` and `delta_high`, and `p_value`.
    """

    values: dict[str, float]
    signatures: dict[str, str] = field(default_factory=dict)
    against_full: dict[str, dict[str, Any]] = field(default_factory=dict)
