"""Records of results folders, their warnings, and groups of one setting."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import all_printable
from ulskip_cli.experiments.record import Record, read
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import (
    NAMES,
    all_settings,
    differences,
    section_of,
    setting_words,
    settings,
    words,
)
from ulskip_cli.report.columns import ABSENT

ROWS_FILE = "runs.jsonl"
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
    def _options(self) -> list[str]:
        """The options in which records of one label, target and batch size differ."""
        return differing_options(
            self.records, lambda record: (record.label, record.target_speedup, record.batch_size)
        )

    def approach(self, record: Record) -> str:
        """Name a record's strategy, correction, and the options in which the group's records
        differ.
        """
        options = (_option_text(record, key) for key in self._options)
        return " ".join([record.label, *filter(None, options)])

    def called(self, record: Record) -> str:
        """Return the name of a point, e.g. `unified 2x`."""
        if record.target_speedup:
            return f"{self.approach(record)} {record.target_speedup:g}x"
        return f"{self.approach(record)}, {len(record.kept_layers or ())} layers"

    def points(self) -> dict[tuple[float, str], dict[int, Record]]:
        """Return the last record by (target, approach) and batch size, in the order of the paper's
        table 4: by target, then strategy, with unified last.
        """
        points = defaultdict[tuple[float, str], dict[int, Record]](dict)
        for record in sorted(
            self.records, key=lambda row: (row.strategy == "unified", row.strategy)
        ):
            if record.target_speedup:
                point = points[record.target_speedup, self.approach(record)]
                point[record.batch_size] = record  # a later record replaces an earlier one
        return dict(sorted(points.items(), key=lambda item: item[0][0]))


def differing_options(records: Sequence[Record], line: Callable[[Record], Hashable]) -> list[str]:
    """Return the options of strategy and correction in which records of an equal `line` differ."""
    rows = []
    for record, row in zip(records, all_settings(records), strict=True):
        options = {
            key: value
            for key, value in row.items()
            if section_of(key) in ("strategy", "correction")
        }
        rows.append({"line": line(record), **options})
    return differences(rows, already_named=["line"])


def _option_text(record: Record, key: str) -> str:
    """Return an option in a name, empty if missing; of a text, which may be a path, the
    last part.
    """
    option = settings(record).get(key)
    if option is None:
        return ""
    items = option if isinstance(option, tuple) else (option,)
    if all(isinstance(item, str) for item in items):
        return ", ".join(Path(item).name for item in items)
    return words(option)


def find_folders(named: Sequence[Path]) -> list[Path]:
    """List the results folders that folders, their parents or runs.jsonl files name."""
    folders: dict[Path, None] = {}
    for path in named:
        folder = path.parent if path.name == ROWS_FILE else path
        below = [folder] if (folder / ROWS_FILE).is_file() else _inside(folder)
        if not below:
            known = ", ".join(map(str, _inside(RESULTS_DIR)))
            raise UsageError(
                f"expected a folder of results with {ROWS_FILE}, or a folder of such folders, got"
                f" '{path}'; known: {known or 'none'}; `ulskip run` makes one"
            )
        folders.update(dict.fromkeys(below))
    return list(folders)


def _inside(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"*/{ROWS_FILE}"))


def stored(folder: ResultsFolder, warn: bool = False) -> list[Record]:
    """Return the records of a folder for display; `warn` about invalid lines."""
    return [displayed(record, folder.path) for record in folder.records(warn=warn)]


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read the records of folders for display; raise UsageError if there are none."""
    records = [record for path in paths for record in stored(ResultsFolder(path), warn=True)]
    if not records:
        raise UsageError(
            f"expected at least one row in {', '.join(map(str, paths))}, got none; run `ulskip"
            " sweep` first"
        )
    return records


def displayed(record: Record, folder: Path) -> Record:
    """Return a record with its folder, and with texts that a terminal and Markdown can show."""
    text = record.model_dump_json(exclude_none=True)
    if "\\" in text or not text.isprintable():
        record = read(json.dumps(all_printable(json.loads(text))))
    return record.replace(folder=str(folder))


def done(records: Iterable[Record]) -> list[Record]:
    """Select the records of finished runs."""
    return [record for record in records if record.is_done]


def ordered(records: Iterable[Record]) -> list[Record]:
    """Sort records by model, pair, target (layer ratio without one) and strategy."""
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
    """List why points have no result; reasons that differ only in `got NUMBER` are merged."""
    same = collected(
        (record for record in records if not record.is_done),
        lambda record: (ABSENT[record.status], re.sub(r"got \d+", "got", str(record.reason))),
    )
    return [
        f"{word} ({', '.join(dict.fromkeys(row.strategy for row in rows))}): {rows[0].reason}"
        for (word, _), rows in same.items()
    ]


def warnings(records: Sequence[Record]) -> list[str]:
    """List the warnings of runs, wide intervals and noise; those alike but for strategy and numbers
    are merged.
    """
    by_id = {record.id: record for record in records}
    alike = defaultdict[str, list[str]](list)  # texts by what they say without strategy and numbers
    for record in records:
        full = by_id.get(record.baseline_id or "")
        for warning in (*record.warnings, *_wide_interval(record), *_noise(record, full)):
            text = warning.removeprefix(f"{record.strategy}: ")
            message = re.sub(r"\d+(\.\d+)?", "", text.replace(record.strategy, ""))
            alike[message].append(text)
    merged = []
    for first, *others in alike.values():
        count = f" (in {len(others) + 1} rows; numbers of the first)" if others else ""
        merged.append(f"{first}{count}")
    return merged


def _wide_interval(record: Record) -> Iterator[str]:
    pairs, speedup = record.pairs, record.speedup
    if pairs and not pairs.is_precise and speedup and speedup.high:
        yield (
            f"the interval of the speedup, {speedup.ends('.2f')}, reaches more than"
            f" {pairs.precision:.0%} to a side; run it longer, with a larger speed.seconds and"
            " --force"
        )


def _noise(record: Record, full: Record | None) -> Iterator[str]:
    """Warn if the full model, timed against itself, differed by as much as the record was asked to
    gain.
    """
    asked = record.target_speedup or record.layer_ratio or 1.0
    if full and full.is_own_baseline and full.pairs and full.pairs.full:
        _, low, high = full.pairs.speedup()
        most = max(high or 1.0, 1 / (low or 1.0))
        if 1 < asked <= most:
            yield (
                f"the full model seemed up to {most:.2f}x as fast as itself, so this machine is too"
                f" restless to tell a speedup of {asked:g}x; end other processes, and use --force"
            )


def grouped(records: Sequence[Record]) -> list[Group]:
    """Group records that agree in all settings but those of `LINES`, in order of first
    appearance.
    """
    rows = [
        {key: repr(value) for key, value in row.items() if section_of(key) not in LINES}
        for row in all_settings(records)
    ]
    named, groups = differences(rows, already_named=NAMES), []
    for indices in _agreeing(rows):
        same = [records[index] for index in indices]
        # A full model lacks settings, so a finished record with a baseline names the group.
        best = next((record for record in done(same) if record.baseline_id), same[0])
        names = [getattr(best, key) for key in NAMES]
        labels = [str(name) for name in names if name is not None]
        groups.append(Group(" · ".join([*labels, *setting_words(best, named)]), same))
    return groups


Values = tuple[str | None, ...]  # of settings; None for a setting that a record does not have


def _agreeing(rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """Return the indices of rows that agree in all settings. A row that lacks a setting joins the
    first group that agrees in the others.
    """
    keys = dict.fromkeys(key for row in rows for key in row)
    # A setting with one value, or none, cannot separate groups.
    varied = [key for key in keys if len({row[key] for row in rows if key in row}) > 1]
    values = [tuple(map(row.get, varied)) for row in rows]
    members: dict[Values, list[int]] = {}  # by the values of the first member
    # Rows that lack most come last, because they can join most groups.
    for index in sorted(range(len(rows)), key=lambda index: values[index].count(None)):
        group = next((known for known in members if _agree(values[index], known)), values[index])
        members.setdefault(group, []).append(index)
    return sorted(map(sorted, members.values()))


def _agree(first: Values, second: Values) -> bool:
    return all(a == b or None in (a, b) for a, b in zip(first, second, strict=True))


def collected(items: Iterable[Item], key: Callable[[Item], Same]) -> dict[Same, list[Item]]:
    """Return lists of items by key, in order of first appearance."""
    lists: dict[Same, list[Item]] = defaultdict(list)
    for item in items:
        lists[key(item)].append(item)
    return lists
