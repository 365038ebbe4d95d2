"""Read stored answers for the HTML page: the examples, the answers of every run, and the words in
which answers differ.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from pathlib import Path
from typing import Any

from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.statistics import read_answers
from ulskip_cli.report.plot_style import strategy_colour
from ulskip_cli.report.rows import Group

MAX_EXAMPLES = 200  # per data set
MAX_RUNS = 48  # per data set
MAX_PICKED = 12  # runs selected at first
# of a comparison of two texts, at most half a second; words that repeat take the most
MAX_STEPS = 10_000_000
DATA_SET = ("task", "dataset", "pair")
# A Chinese or Japanese character, a word, or a sign.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*|\S")


@dataclass(frozen=True)
class Answers:
    """The stored answers that a page shows."""

    sets: list[
        dict[str, Any]
    ]  # the examples and runs of every data set, with the positions of their texts
    texts: list[str]  # every text once
    changes: dict[str, list[int]]  # result of `compare_texts` by "base,text", for texts that differ
    note: str  # one sentence on how many of the stored answers are included


def collect(groups: Sequence[Group], rows: Sequence[Record], most: int = MAX_EXAMPLES) -> Answers:
    """Read the answers to the first `most` examples of each data set; runs refer to rows by their
    index in `rows`.
    """
    if most == 0:
        return Answers([], [], {}, "The page has no answers, because --examples is 0.")
    labels = {row.key: _label(group, row) for group in groups for row in group.records}
    folders = {row.folder for row in rows}
    saved = {
        folder: {file.stem for file in (Path(folder) / "generations").glob("*.jsonl")}
        for folder in folders
    }
    stored: dict[tuple[str, ...], dict[int, Record]] = defaultdict(dict)
    for i, row in enumerate(rows):
        if row.id in saved[row.folder]:
            stored[tuple(str(row.value(key)) for key in DATA_SET)][i] = row
    texts: dict[str, int] = {}
    names = [" · ".join(part for part in key if part != "None") for key in stored]
    sets = [
        {"label": name, **_data_set(by_index, labels, texts, most)}
        for name, by_index in zip(names, stored.values(), strict=True)
    ]
    note = _note(sets, list(map(len, stored.values())))
    sets = [data_set for data_set in sets if data_set["runs"]]
    return Answers(sets, list(texts), _changes(sets, list(texts)), note)


def _label(group: Group, row: Record) -> str:
    return group.approach(row) if row.keeps_all or not row.target_speedup else group.called(row)


def _note(sets: Sequence[dict[str, Any]], stored: Sequence[int]) -> str:
    if not stored:
        return "The results folders hold no answers: they have no generations/."
    parts = []
    for data_set, count in zip(sets, stored, strict=True):
        cut = f" of {data_set['stored']}" if data_set["stored"] > len(data_set["examples"]) else ""
        runs = (
            f"{len(data_set['runs'])} of {count} points"
            if count > len(data_set["runs"])
            else f"{count} points"
        )
        parts.append(
            f"{data_set['label']}: {len(data_set['examples'])}{cut} examples, answers of {runs}"
        )
    return "; ".join(parts) + "."


def _data_set(
    rows: dict[int, Record], labels: dict[tuple[str, str], str], texts: dict[str, int], most: int
) -> dict[str, Any]:
    """Return the examples of one data set and the runs on them; runs that answered other examples
    are left out.
    """

    def position(text: str) -> int:
        return texts.setdefault(text, len(texts))

    examples: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    stored = 0
    for i in sorted(sorted(rows, key=lambda i: (rows[i].batch_size, i))[:MAX_RUNS]):
        answers = read_answers(rows[i].folder, rows[i].id)
        shown = answers[:most]
        if not examples:
            stored = len(answers)
            named = [
                (
                    str(answer.get("id", "")),
                    position(answer["source"]),
                    position(answer["reference"]),
                )
                for answer in shown
            ]
            examples = [
                {"id": name, "source": source, "reference": reference}
                for name, source, reference in named
            ]
        if not answers or [position(answer["source"]) for answer in shown] != [
            example["source"] for example in examples
        ]:
            continue
        outputs = [position(answer["hypothesis"]) for answer in shown]
        flags = {i: answer["flags"] for i, answer in enumerate(shown) if answer.get("flags")}
        runs.append(
            {
                "row": i,
                "colour": strategy_colour(rows[i].strategy),
                "outputs": outputs,
                "flags": flags,
            }
        )
    names = [labels[rows[run["row"]].key] for run in runs]
    for run, name in zip(runs, names, strict=True):
        run["label"] = (
            f"{name} · batch {rows[run['row']].batch_size}" if names.count(name) > 1 else name
        )
        run["baseline"] = _baseline(rows[run["row"]], [rows[other["row"]] for other in runs])
    first: dict[str, int] = {}  # of every label the run with the smallest batch
    for i in sorted(range(len(runs)), key=lambda i: rows[runs[i]["row"]].batch_size):
        first.setdefault(names[i], i)
    shown_first = [
        i for i in first.values() if rows[runs[i]["row"]].strategy in ("full", "unified")
    ]
    if not any(rows[runs[i]["row"]].strategy == "unified" for i in shown_first):
        shown_first = list(first.values())
    return {
        "examples": examples,
        "runs": runs,
        "picked": sorted(shown_first)[:MAX_PICKED],
        "stored": stored,
    }


def _baseline(row: Record, others: Sequence[Record]) -> int | None:
    """Return the index of the row's baseline in `others`, or else the index of any full run of the
    same model.
    """
    wanted = row.baseline_id or (row.id if row.keeps_all else None)
    fulls = [i for i, record in enumerate(others) if record.keeps_all and record.model == row.model]
    return next((i for i in fulls if others[i].id == wanted), next(iter(fulls), None))


def _changes(sets: Sequence[dict[str, Any]], texts: Sequence[str]) -> dict[str, list[int]]:
    """Compare every answer with its reference and with the full model's answer."""
    changes: dict[str, list[int]] = {}
    for data_set in sets:
        references = [example["reference"] for example in data_set["examples"]]
        for run in data_set["runs"]:
            fulls = (
                references
                if run["baseline"] is None
                else data_set["runs"][run["baseline"]]["outputs"]
            )
            for base, text in [
                *zip(references, run["outputs"], strict=True),
                *zip(fulls, run["outputs"], strict=True),
            ]:
                if base != text and f"{base},{text}" not in changes:
                    changes[f"{base},{text}"] = compare_texts(texts[base], texts[text])
    return changes


def compare_texts(base: str, text: str) -> list[int]:
    """Return the percentage of equal words, then triples of character counts: in both, only in
    `base`, only in `text`.

    >>> compare_texts("a b c", "a c")
    [80, 1, 3, 1, 1, 0, 0]
    """
    ours, theirs = (list(WORD.finditer(whole)) for whole in (base, text))
    blocks = _matching_blocks([word[0] for word in ours], [word[0] for word in theirs])
    lengths: list[int] = []
    i = j = equal = (
        0  # where both texts are, and the number of equal characters since the last difference
    )
    for block in blocks:
        for k in range(block.size):
            (start, end), (other, other_end) = ours[block.a + k].span(), theirs[block.b + k].span()
            if k == 0 or start - i != other - j:  # a difference ends here, if only of spaces
                if start > i or other > j:
                    lengths += [equal, start - i, other - j]
                    equal = 0
                equal += end - start
            else:
                equal += end - i
            i, j = end, other_end
    lengths += [equal, len(base) - i, len(text) - j]
    total = len(ours) + len(theirs)
    return [round(200 * sum(block.size for block in blocks) / total) if total else 100, *lengths]


def _matching_blocks(ours: Sequence[str], theirs: Sequence[str]) -> list[Match]:
    """Return the blocks of equal words; if it would take too long to find all, only those at the
    start and at the end.
    """
    counts, shortest = Counter(theirs), min(len(ours), len(theirs))
    if shortest * (len(ours) + sum(counts[word] for word in ours)) <= MAX_STEPS:
        return SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    start = next((i for i in range(shortest) if ours[i] != theirs[i]), shortest)
    end = next(
        (i for i in range(shortest - start) if ours[-1 - i] != theirs[-1 - i]), shortest - start
    )
    return [
        Match(0, 0, start),
        Match(len(ours) - end, len(theirs) - end, end),
        Match(len(ours), len(theirs), 0),
    ]
