"""Which rows may stand in one table: those that differ in nothing but strategy, target and batch size."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

from ulskip_cli.experiments.record import Row
from ulskip_cli.report import settings

ALWAYS = ("model", "task", "pair", "decoding")  # named in every heading
SETTINGS = (
    *("folder", *ALWAYS, "dataset", "draft_tokens", "num_examples", "prompt_layers", "ratio_basis", "chat"),
    *("quantization", "dtype", "device", "seed"),
)


@dataclass(frozen=True)
class Group:
    """Rows of one setting.

    Attributes:
        label: what they share, as far as other groups differ in it.
        rows: in the order that they came in.
    """

    label: str
    rows: list[Row]

    @property
    def batches(self) -> list[int]:
        """Batch sizes, the smallest first."""
        return sorted({row["batch_size"] for row in self.rows})

    @cached_property
    def _options(self) -> dict[str, set[str]]:
        """Sets of options by strategy."""
        found: dict[str, set[str]] = {}
        for row in self.rows:
            found.setdefault(str(row["strategy"]), set()).add(json.dumps(row.get("strategy_options") or {}, sort_keys=True))
        return found

    def approach(self, row: Row) -> str:
        """The strategy's name, with its options where the group holds several sets of them."""
        name = str(row["strategy"])
        told = " ".join(str(value) for value in (row.get("strategy_options") or {}).values())
        return f"{name} {told}" if told and len(self._options[name]) > 1 else name


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Rows by setting, in the order in which settings first appear.

    A row that does not know one of its settings, as an older one or one that came to nothing, joins the first setting that
    agrees with what it knows.

    >>> [group.label for group in grouped([{"model": "m", "seed": 1}, {"model": "m", "seed": 2}])]
    ['m · seed 1', 'm · seed 2']
    """
    varying = [
        key
        for key in (*SETTINGS, *settings.keys(rows))
        if key not in ALWAYS and len({str(row[key]) for row in rows if key in row}) > 1
    ]
    keys = (*ALWAYS, *varying)
    found: dict[tuple[str, ...], list[tuple[int, Row]]] = {}
    partial = []
    for i, row in enumerate(rows):
        if all(key in row for key in varying):
            found.setdefault(tuple(str(row.get(key)) for key in keys), []).append((i, row))
        else:
            partial.append((i, row))
    for i, row in partial:
        alike = (own for own in found if all(key not in row or str(row[key]) == at for key, at in zip(keys, own, strict=True)))
        own = next(alike, tuple(str(row.get(key)) for key in keys))
        found.setdefault(own, []).append((i, row))
    ranked = sorted(found.items(), key=lambda item: item[1][0][0])
    return [Group(_label(own, varying), [row for _, row in sorted(members, key=itemgetter(0))]) for own, members in ranked]


def _label(values: Sequence[str], varying: Sequence[str]) -> str:
    named = [value for value in values[: len(ALWAYS)] if value != "None"]
    told = [f"{settings.title(key)} {value}" for key, value in zip(varying, values[len(ALWAYS) :], strict=True)]
    return " · ".join([*named, *(text for text in told if not text.endswith(" None"))])
