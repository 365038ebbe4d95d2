"""The unit that a task hands to a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One source text and the reference answer that a hypothesis is compared with."""

    id: str
    source: str
    reference: str
