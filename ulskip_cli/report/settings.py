"""What rows differ in besides what they say themselves: keys of their configurations, which become columns and headings."""

from collections.abc import Iterable, Sequence
from typing import Any

from ulskip_cli.experiments.record import Row

# Keys that rows tell under names of their own, or that change no result.
_TOLD: dict[str, set[str]] = {
    "model": {"name", "path", "description", "source", "dtype", "device", "device_map", "quantization"},
    "task": {"name", "_target_", "description", "dataset", "pair", "file", "source_file", "reference_file", "metrics"},
    "decoding": {"name", "description", "draft_tokens"},
    "calibration": {"task"},
    "speed": {"enabled", "pairs", "warmup"},
}
_CONCERNS = {"calibration": "calibration", "speed": "measured_speedup"}  # rows that have this key alone
Kind = tuple[dict[str, Any], list[int]]  # a part of a configuration, and the positions of the rows that have it


def told(rows: Sequence[Row]) -> list[Row]:
    """Rows, with a key `part.key` for all in which configurations with the same choice in that part differ.

    >>> one, other = (dict(config=dict(decoding=dict(name="greedy", max_new_tokens=n))) for n in (4, 24))
    >>> [row["decoding.max_new_tokens"] for row in told([one, other])], told([one, one]) == [one, one]
    ([4, 24], True)
    """
    found = list(rows)
    for part, known in _TOLD.items():
        for kinds in _kinds(rows, part):
            keys = _varying([values for values, _ in kinds], known)
            for values, members in kinds if keys else ():
                more = {f"{part}.{key}": values[key] for key in keys}
                for i in members:
                    found[i] = {**found[i], **more}
    return found


def keys(rows: Iterable[Row]) -> list[str]:
    """Those that `told` gave to any of these rows."""
    return list(dict.fromkeys(key for row in rows for key in row if "." in key))


def title(key: str) -> str:
    """Of a column or in a heading.

    >>> title("decoding.max_new_tokens"), title("batch_size"), title("num_examples")
    ('max new tokens', 'batch size', 'examples')
    """
    return key.rpartition(".")[2].removeprefix("num_").replace("_", " ")


def _kinds(rows: Sequence[Row], part: str) -> Iterable[list[Kind]]:
    """The different values of one part, for every choice in it."""
    by_choice: dict[str, list[Kind]] = {}
    concerned = _CONCERNS.get(part)
    for i, row in enumerate(rows):
        values = (row.get("config") or {}).get(part)
        if not isinstance(values, dict) or (concerned and row.get(concerned) is None):
            continue
        kinds = by_choice.setdefault(str(values.get("name")), [])
        for known, members in kinds:
            if known == values:
                members.append(i)
                break
        else:
            kinds.append((values, [i]))
    return by_choice.values()


def _varying(kinds: Sequence[dict[str, Any]], known: set[str]) -> list[str]:
    """Plain keys that all have, and not all alike."""
    everywhere = [key for key in kinds[0] if key not in known and all(key in values for values in kinds)]
    plain = [key for key in everywhere if not any(isinstance(values[key], dict) for values in kinds)]
    return [key for key in plain if len({str(values[key]) for values in kinds}) > 1]
