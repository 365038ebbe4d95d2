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
from ulskip_cli.experiments.record import DETECTED, Record, read
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import (
    NAMES,
    Key,
    Settings,
    all_settings,
    differences,
    settings,
)
from ulskip_cli.report.columns import ABSENT, MISSING

FILE = "runs.jsonl"
RESULTS_DIR = Path("results")  # default of results_dir
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
    def _options(self) -> list[Key]:
        """The options of strategy and correction in which records of one label differ at the same
        target and batch size.
        """
        lines = collected(
            self.records, lambda record: (record.label, record.target_speedup, record.batch_size)
        )
        return differing_options(lines.values())

    def approach(self, record: Record) -> str:
        """Name a record's strategy and its correction, and the options in which the group's
        records differ.
        """
        options = (_option_text(record, key) for key in self._options)
        return " ".join([record.label, *filter(None, options)])

    def called(self, record: Record) -> str:
        """Return the name of a point, e.g. `unified 2x`."""
        if record.target_speedup:
            return f"{self.approach(record)} {record.target_speedup:g}x"
        return f"{self.approach(record)}, {len(record.kept_layers or ())} layers"

    def points(self) -> dict[tuple[float, str], dict[int, Record]]:
        """Return the records with a target by target and approach, and then by batch size; of
        several, the last. Their order is that of the paper's table 4: by target, then by strategy
        with unified last.
        """
        asked = [(target, row) for row in self.records if (target := row.target_speedup)]
        asked.sort(key=lambda pair: (pair[0], pair[1].strategy == "unified", pair[1].strategy))
        points: dict[tuple[float, str], dict[int, Record]] = {}
        for target, record in asked:
            point = points.setdefault((target, self.approach(record)), {})
            point[record.batch_size] = record  # a later record replaces an earlier one
        return points


def differing_options(lines: Iterable[Sequence[Record]]) -> list[Key]:
    """Return the options of strategy and correction in which records of one line differ."""
    keys = (key for line in lines for key in differences(all_settings(line), but=("folder",)))
    return [key for key in dict.fromkeys(keys) if key.part in LINES[:2]]


def _option_text(record: Record, key: Key) -> str:
    """Return an option as part of a name; paths are named by their last part."""
    option = settings(record).get(key)
    parts = option if isinstance(option, tuple) else (option,)
    if all(isinstance(part, str) for part in parts):
        return ", ".join(Path(part).name for part in parts)
    return "" if option is None else words(option)


def find_folders(named: Sequence[Path]) -> list[Path]:
    """List the results folders that folders, parent folders or runs.jsonl files name."""
    folders: dict[Path, None] = {}
    for path in named:
        folder = path.parent if path.name == FILE else path
        below = [folder] if (folder / FILE).is_file() else _inside(folder)
        if not below:
            known = ", ".join(map(str, _inside(RESULTS_DIR)))
            raise UsageError(
                f"expected a folder of results with {FILE}, or a folder of such folders, got"
                f" '{path}'; known: {known or 'none'}; `ulskip run` makes one"
            )
        folders.update(dict.fromkeys(below))
    return list(folders)


def _inside(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"*/{FILE}"))


def stored(folder: ResultsFolder, warn: bool = False) -> list[Record]:
    """Return the records of a results folder for display; `warn` about invalid lines."""
    return [displayed(record, folder.path) for record in folder.records(warn=warn)]


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read the records of results folders for display, and warn about invalid lines."""
    records = [record for path in paths for record in stored(ResultsFolder(path), warn=True)]
    if not records:
        raise UsageError(
            f"expected at least one row in {', '.join(map(str, paths))}, got none; run `ulskip"
            " sweep` first"
        )
    return records


def displayed(record: Record, folder: Path) -> Record:
    """Return a record with its folder and with texts that a terminal and Markdown can show."""
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
    same = collected(
        (record for record in records if not record.is_done),
        lambda record: (ABSENT[record.status], re.sub(r"got \d+", "got", str(record.reason))),
    )
    return [
        f"{word} ({', '.join(dict.fromkeys(row.strategy for row in rows))}): {rows[0].reason}"
        for (word, _), rows in same.items()
    ]


def warnings(records: Iterable[Record]) -> list[str]:
    """List the warnings of runs, and those about wide intervals; those that differ only in the
    strategy and in numbers are merged and counted.
    """
    told = [  # (strategy, text)
        (record.strategy, text.removeprefix(f"{record.strategy}: "))
        for record in records
        for text in (*record.warnings, *_wide_interval(record))
    ]
    alike = collected(told, lambda pair: re.sub(r"\d+(\.\d+)?", "", pair[1].replace(pair[0], "")))
    return [
        f"{same[0][1]}{f' (in {len(same)} rows; numbers of the first)' if len(same) > 1 else ''}"
        for same in alike.values()
    ]


def _wide_interval(record: Record) -> Iterator[str]:
    pairs, speedup = record.pairs, record.speedup
    if pairs and not (pairs.is_precise or is_own_baseline(record)) and speedup and speedup.high:
        yield (
            f"the interval of the speedup, {speedup.ends('.2f')}, reaches more than"
            f" {pairs.precision:.0%} to a side; run it longer, with a larger speed.seconds and"
            " --force"
        )


def is_own_baseline(record: Record) -> bool:
    """Return True if the full model was timed against itself, so that the speedup is noise."""
    has_all = record.num_layers and len(record.kept_layers or ()) == record.num_layers
    others = record.draft_tokens, record.later_stages, record.exit_depths
    return bool(has_all) and not (record.config.crosses_engines or any(others))


def setting_text(record: Record, key: Key) -> str:
    """Return the value of a setting as words, or a dash if the record has none or did not use
    it.
    """
    # An engine that agrees with all others, e.g. that of drafts, is shown too.
    value = record.value(key.name) if key.name in DETECTED else settings(record).get(key)
    return MISSING if value in (None, {}, ()) else words(value)


def setting_words(record: Record, keys: Iterable[Key]) -> list[str]:
    """Name the values of some settings, without those that the record does not have."""
    return [f"{key.title} {text}" for key in keys if (text := setting_text(record, key)) != MISSING]


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
    texts = [
        {key: repr(value) for key, value in row.items() if key.part not in LINES} for row in rows
    ]
    keys = dict.fromkeys(key for row in texts for key in row)
    # A setting with one value, or none, cannot separate groups.
    varied = [key for key in keys if len({row[key] for row in texts if key in row}) > 1]
    lines = [tuple(map(row.get, varied)) for row in texts]  # None: the record lacks the setting
    group_of = _assigned(list(dict.fromkeys(lines)))
    members = collected(zip(lines, records, strict=True), lambda pair: group_of[pair[0]])
    named = _telling(rows, differences(rows, but=LINES))
    groups = []
    for pairs in members.values():
        same = [record for _, record in pairs]
        # A full model lacks settings, so a finished record with a baseline names the group.
        best = next((record for record in done(same) if record.baseline_id), same[0])
        labels = [str(name) for key in NAMES if (name := getattr(best, key)) is not None]
        groups.append(Group(" · ".join([*labels, *setting_words(best, named)]), same))
    return groups


def _telling(rows: Sequence[Settings], keys: Iterable[Key]) -> list[Key]:
    """Select the keys that a label needs. A key is needed if rows differ in it although their names
    (`NAMES`) and the keys that were selected before are equal.
    """
    told = list(map(Key, NAMES))
    for key in keys:
        equal = collected(
            (row for row in rows if key in row),
            lambda row: tuple(repr(row.get(name)) for name in told),
        )
        if any(len({repr(row[key]) for row in same}) > 1 for same in equal.values()):
            told.append(key)
    return told[len(NAMES) :]


Line = tuple[str | None, ...]  # the values of settings, None for one that a record does not have


def _assigned(lines: Sequence[Line]) -> dict[Line, Line]:
    """Map every line of settings to a group, which its first line names: an incomplete line to the
    first group that agrees with it, every other line to a group of its own.
    """
    groups: list[Line] = []
    group_of: dict[Line, Line] = {}
    for line in sorted(lines, key=lambda line: line.count(None)):  # complete lines first
        agreeing = [group for group in groups if None in line and _agree(line, group)]
        if not agreeing:
            groups.append(line)
        group_of[line] = agreeing[0] if agreeing else line
    return group_of


def _agree(one: Line, other: Line) -> bool:
    """Return True if two lines have equal settings; a missing one equals every value."""
    return all(a == b or None in (a, b) for a, b in zip(one, other, strict=True))


def collected(items: Iterable[Item], key: Callable[[Item], Same]) -> dict[Same, list[Item]]:
    """Return lists of items by key, in order of first appearance."""
    lists: dict[Same, list[Item]] = defaultdict(list)
    for item in items:
        lists[key(item)].append(item)
    return lists
