"""Records of results folders: reading them, the settings in which they differ, and groups of one
setting.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import all_printable
from ulskip_cli.core.schedule import listed
from ulskip_cli.experiments.record import DETECTED, MISSING, Record, read
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import (
    NAMES,
    Key,
    Settings,
    all_settings,
    differences,
    settings,
)

FILE = "runs.jsonl"
LINES = ("strategy", "correction", "ratio", "batch_size")  # differ between the lines of one table

Item = TypeVar("Item")
Same = TypeVar("Same", bound=Hashable)


@dataclass(frozen=True)
class Group:
    """Records that differ only in strategy, correction, target and batch size."""

    label: str  # the shared settings in which groups differ
    records: list[Record]

    @property
    def done(self) -> list[Record]:
        """The records of finished runs."""
        return done(self.records)

    @property
    def batches(self) -> list[int]:
        """All batch sizes, ascending."""
        return sorted({record.batch_size for record in self.records})

    @cached_property
    def _approaches(self) -> dict[tuple[str, str], str]:
        """The labels of the records, with the options of strategy and correction in which records
        of one strategy differ at the same target and batch size.
        """
        names = {record.key: [record.label] for record in self.records}
        for records in collected(self.records, lambda record: record.strategy).values():
            lines = collected(
                records, lambda record: (record.label, record.target_speedup, record.batch_size)
            )
            keys = {
                key: None
                for line in lines.values()
                for key in differences(all_settings(line), but=("folder",))
                if key.part in LINES[:2]
            }
            for record in records:
                names[record.key] += filter(None, (_option_text(record, key) for key in keys))
        return {key: " ".join(parts) for key, parts in names.items()}

    def approach(self, record: Record) -> str:
        """Name a record's strategy and its correction, and the options in which the group's
        records differ.
        """
        return self._approaches[record.key]

    def called(self, record: Record) -> str:
        """Return the name of a point, e.g. `unified 2x`."""
        if record.target_speedup:
            return f"{self.approach(record)} {record.target_speedup:g}x"
        return f"{self.approach(record)}, {len(record.kept_layers or ())} layers"

    def points(self) -> dict[tuple[float, str], dict[int, Record]]:
        """Return the last record of every target, approach and batch size, in the order of the
        paper's table 4: by target, then by strategy with unified last.
        """
        points: dict[tuple[float, str], dict[int, Record]] = defaultdict(dict)
        for record in sorted(
            self.records,
            key=lambda record: (
                record.target_speedup or 0.0,
                record.strategy == "unified",
                record.strategy,
            ),
        ):
            if record.target_speedup:
                points[record.target_speedup, self.approach(record)][record.batch_size] = record
        return points


def _option_text(record: Record, key: Key) -> str:
    """Return an option as part of a name; paths are named by their last part."""
    option = settings(record).get(key)
    if isinstance(option, tuple) and option and all(isinstance(item, str) for item in option):
        return ", ".join(Path(item).name for item in option)
    return Path(option).name if isinstance(option, str) else "" if option is None else words(option)


def find_folders(named: Sequence[Path], results_dir: Path) -> list[Path]:
    """List the results folders that folders, parent folders or runs.jsonl files name; by default,
    all in `results_dir`.
    """
    folders: dict[Path, None] = {}
    for path in named or [results_dir]:
        folder = path.parent if path.name == FILE else path
        below = [folder] * (folder / FILE).is_file() or _inside(folder)
        if not below:
            known = ", ".join(map(str, _inside(results_dir)))
            raise UsageError(
                f"expected a folder of results with {FILE}, or a folder of such folders, got"
                f" '{path}'; known: {known or 'none'}; `ulskip run` makes one"
            )
        folders.update(dict.fromkeys(below))
    return list(folders)


def _inside(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"*/{FILE}"))


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read the records of results folders for display, and warn about invalid lines."""
    records = [
        displayed(record, path)
        for path in paths
        for record in ResultsFolder(path).records(warn=True)
    ]
    if not records:
        raise UsageError(
            f"expected at least one row in {', '.join(map(str, paths))}, got none; run `ulskip"
            " sweep` first"
        )
    return records


def displayed(record: Record, folder: Path) -> Record:
    """Return a record with its folder and with texts that a terminal, Markdown and CSV can show."""
    text = record.model_dump_json(exclude_none=True)
    if "\\" in text or not text.isprintable():
        record = read(json.dumps(all_printable(json.loads(text))))
    return record.replace(folder=str(folder))


def done(records: Iterable[Record]) -> list[Record]:
    """Select the records of finished runs."""
    return [record for record in records if record.is_done]


def ordered(records: Iterable[Record]) -> list[Record]:
    """Sort records by model, pair, target speedup (layer ratio without a target) and strategy."""
    return sorted(
        records,
        key=lambda record: (
            str(record.model),
            str(record.pair),
            record.target_speedup or record.layer_ratio or 0.0,
            record.strategy,
        ),
    )


def reasons(records: Iterable[Record]) -> list[str]:
    """List the reasons why points have no result, with strategies; reasons that differ only in `got
    NUMBER` are merged.
    """
    first: dict[str, str] = {}
    strategies: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        if not record.is_done:
            reason = record.reason or "no reason given"
            reason = first.setdefault(re.sub(r"got \d+", "got", reason), reason)
            strategies[record.absent, reason].append(record.strategy)
    return [
        f"{word} ({', '.join(dict.fromkeys(names))}): {text}"
        for (word, text), names in strategies.items()
    ]


def warnings(records: Iterable[Record]) -> list[str]:
    """List the warnings of runs, and those about wide intervals of all units of a point; those that
    differ only in the strategy and in numbers are merged and counted.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for text in (*record.warnings, *_wide_interval(record)):
            plain = text.removeprefix(f"{record.strategy}: ")
            key = re.sub(r"\d+(\.\d+)?", "", plain.replace(record.strategy, ""))
            texts[key].append(plain)
    return [
        f"{same[0]}{f' (in {len(same)} rows)' if len(same) > 1 else ''}" for same in texts.values()
    ]


def _wide_interval(record: Record) -> Iterator[str]:
    pairs, speedup = record.pairs, record.speedup
    is_noise = record.keeps_all and not record.baseline_id  # the full model against itself
    if pairs and not (pairs.is_precise or is_noise) and speedup and speedup.high:
        yield (
            f"the interval of the speedup reaches {speedup.high / speedup.value - 1:.1%} to each"
            f" side instead of {pairs.precision:.0%}; raise speed.seconds, or repeat the command,"
            " whose units are added"
        )


def setting_text(record: Record, key: Key) -> str:
    """Return the value of a setting as words, or a dash if the record has none or did not use
    it.
    """
    # An engine that agrees with all others, e.g. that of drafts, is shown too.
    value = record.value(key.name) if key.name in DETECTED else settings(record).get(key)
    return MISSING if value in (None, {}, ()) else words(value)


def words(value: object) -> str:
    """Return a value as text: numbers of layers as ranges, and a mapping without its keys.

    >>> words([0, 1, 2, 5]), words({"file": "a.txt"})
    ('0-2, 5', 'a.txt')
    """
    if isinstance(value, dict):
        return " ".join(map(str, value.values()))
    if value and isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return listed(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def grouped(records: Sequence[Record]) -> list[Group]:
    """Group records whose settings agree, in order of first appearance; see `LINES` for the
    settings that a group mixes.

    A record without a setting, which agrees with every value, joins the first group that agrees
    otherwise.
    """
    rows = all_settings(records)
    keys = dict.fromkeys(key for row in rows for key in row if key.part not in LINES)
    values = {key: {repr(row[key]) for row in rows if key in row} for key in keys}
    varied = [key for key in keys if len(values[key]) > 1]
    lines = [tuple(repr(row[key]) if key in row else None for key in varied) for row in rows]
    group_of = _assigned(list(dict.fromkeys(lines)))
    members = collected(zip(lines, records, strict=True), lambda pair: group_of[pair[0]])
    named = _telling(rows, differences(rows, but=LINES))
    groups = []
    for pairs in members.values():
        same = [record for _, record in pairs]
        best = next((record for record in done(same) if record.baseline_id), same[0])
        labels = [str(name) for key in NAMES if (name := getattr(best, key)) is not None]
        texts = {key: setting_text(best, key) for key in named}
        labels += [f"{key.title} {text}" for key, text in texts.items() if text != MISSING]
        groups.append(Group(" · ".join(labels), same))
    return groups


def _telling(rows: Sequence[Settings], keys: Sequence[Key]) -> list[Key]:
    """Select the keys that tell rows apart which have equal names and equal values of the keys
    before.
    """
    chosen: list[Key] = []
    for key in keys:
        if key.name in NAMES:
            continue
        values: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for row in rows:
            if key in row:
                told = tuple(repr(row.get(name)) for name in (*map(Key, NAMES), *chosen))
                values[told].add(repr(row[key]))
        if any(len(different) > 1 for different in values.values()):
            chosen.append(key)
    return chosen


Line = tuple[str | None, ...]  # the values of settings, None for one that a record does not have


def _assigned(lines: Sequence[Line]) -> dict[Line, Line]:
    """Map every line of settings to a group: a complete line to its own group, an incomplete line
    to the first group that agrees.
    """
    group_of: dict[Line, Line] = {}
    for line in sorted(lines, key=lambda line: line.count(None)):
        agreeing = (
            group
            for group in dict.fromkeys(group_of.values())
            if all(a == b or None in (a, b) for a, b in zip(line, group, strict=True))
        )
        group_of[line] = next(agreeing, line) if None in line else line
    return group_of


def collected(items: Iterable[Item], key: Callable[[Item], Same]) -> dict[Same, list[Item]]:
    """Return lists of items by key, in order of first appearance."""
    lists: dict[Same, list[Item]] = defaultdict(list)
    for item in items:
        lists[key(item)].append(item)
    return lists
