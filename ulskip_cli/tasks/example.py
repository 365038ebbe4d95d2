"""The unit that a task hands to a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ulskip_cli.core.errors import UsageError


@dataclass(frozen=True)
class Example:
    """One source text and the reference answer that a hypothesis is compared with."""

    id: str
    source: str
    reference: str


def from_rows(rows: Sequence[dict[str, Any]], source_key: str, reference_key: str, where: str) -> list[Example]:
    """Examples out of rows with a text under each of two keys; `id` is taken where a row has one.

    Raises:
        UsageError: a row lacks one of the texts; the message names it.
    """
    if not rows:
        raise UsageError(f"{where} has no rows")
    examples = []
    for i, row in enumerate(rows):
        source, reference = row.get(source_key), row.get(reference_key)
        if not (isinstance(source, str) and source.strip() and isinstance(reference, str) and reference.strip()):
            raise UsageError(
                f"{where}, row {i + 1}: expected texts under {source_key} and {reference_key}, got keys {', '.join(row)}"
            )
        examples.append(Example(str(row.get("id", i)), source, reference))
    return examples
