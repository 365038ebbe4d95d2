"""Stored answers, side by side, for a page: examples, and what every point answered to them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import sources

MOST_EXAMPLES = 200
MOST_RUNS = 48
DATA = ("task", "dataset", "pair")


@dataclass(frozen=True)
class Answers:
    """What goes into a page.

    Attributes:
        sets: one a data set: its examples, and of every run the row's position, its answers and its full model's run.
        texts: every text once; sets name them by position.
        note: how much of what is stored is there, in words.
    """

    sets: list[dict[str, Any]]
    texts: list[str]
    note: str

    def told(self) -> dict[str, Any]:
        """For the page."""
        return {"sets": self.sets, "texts": self.texts}

    @property
    def rows(self) -> set[int]:
        """Positions of the rows whose answers are there."""
        return {run["row"] for one in self.sets for run in one["runs"]}


def collect(rows: Sequence[Row], most: int = MOST_EXAMPLES) -> Answers:
    """Read the stored answers of rows.

    Args:
        rows: with their folder.
        most: examples of a data set to keep, the first ones; 0 reads none.
    """
    if most == 0:
        return Answers([], [], "No answers were asked for (--examples 0).")
    stored: dict[tuple[str, ...], list[int]] = {}
    there = {folder: _ids(Path(folder)) for folder in dict.fromkeys(str(row["folder"]) for row in rows)}
    for i, row in enumerate(rows):
        if row["id"] in there[str(row["folder"])]:
            stored.setdefault(tuple(str(row.get(key)) for key in DATA), []).append(i)
    texts: dict[str, int] = {}
    sets = [_set(key, [(i, rows[i]) for i in members], texts, most) for key, members in stored.items()]
    return Answers([one for one in sets if one["runs"]], list(texts), _note(sets, stored))


def _ids(folder: Path) -> set[str]:
    return {file.stem for file in (ResultsFolder(folder).path / "generations").glob("*.jsonl")}


def _note(sets: Sequence[dict[str, Any]], stored: dict[tuple[str, ...], list[int]]) -> str:
    if not stored:
        return "No answers are stored beside these rows: their folders have no generations/."
    parts = []
    for one, members in zip(sets, stored.values(), strict=True):
        cut = f" of {one['of']}" if one["of"] > len(one["examples"]) else ""
        runs = f"{len(one['runs'])} of {len(members)} points" if len(members) > len(one["runs"]) else f"{len(members)} points"
        parts.append(f"{one['label']}: {len(one['examples'])}{cut} examples, answers of {runs}")
    return "; ".join(parts) + "."


def _set(key: Sequence[str], members: Sequence[tuple[int, Row]], texts: dict[str, int], most: int) -> dict[str, Any]:
    """One data set's examples and runs; runs whose examples are others are left out."""
    smallest = sorted(members, key=lambda item: (item[1]["batch_size"], item[0]))[:MOST_RUNS]
    examples: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    of = 0
    for i, row in sorted(smallest, key=lambda item: item[0]):
        answers = sources.generations(row)
        if not examples:
            of = len(answers)
            examples = [_example(one, texts) for one in answers[:most]]
        told = [_text(one["source"], texts) for one in answers[:most]]
        if not answers or told != [one["source"] for one in examples]:
            continue
        outputs = [_text(one["hypothesis"], texts) for one in answers[:most]]
        runs.append({"row": i, "outputs": outputs, "flags": [one.get("flags") or [] for one in answers[:most]]})
    chosen = dict(members)
    for run in runs:
        run["baseline"] = _baseline(chosen[run["row"]], [(other, chosen[other["row"]]) for other in runs], runs)
    label = " · ".join(part for part in key if part != "None")
    return {"label": label, "examples": examples, "runs": runs, "of": of}


def _baseline(row: Row, others: Sequence[tuple[dict[str, Any], Row]], runs: Sequence[dict[str, Any]]) -> int | None:
    """Position among the runs of the full model that this one is compared with."""
    wanted = row.get("baseline_id") or (row["id"] if row["strategy"] == "full" else None)
    fulls = [(run, its) for run, its in others if its["strategy"] == "full" and its.get("model") == row.get("model")]
    named = [run for run, its in fulls if its["id"] == wanted]
    chosen = [*named, *(run for run, _ in fulls)]
    return runs.index(chosen[0]) if chosen else None


def _example(one: Row, texts: dict[str, int]) -> dict[str, Any]:
    return {"id": str(one.get("id", "")), "source": _text(one["source"], texts), "reference": _text(one["reference"], texts)}


def _text(text: str, texts: dict[str, int]) -> int:
    return texts.setdefault(text, len(texts))


def safe_json(value: Any) -> str:
    r"""JSON that may stand within a script element: nothing in it can end that element or begin a comment.

    >>> safe_json("</script><!--")
    '"\\u003c/script\\u003e\\u003c!--"'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
