"""Records of results folders: reading them, the settings in which they differ, and groups of one
setting.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

import pandas as pd

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import all_printable
from ulskip_cli.core.schedule import listed
from ulskip_cli.experiments.record import MISSING, SETTING_FIELDS, Record, read
from ulskip_cli.experiments.results import ResultsFolder

FILE = "runs.jsonl"
NAMES = ("model", "task", "pair", "decoding")  # begin the label of every group
LINES = ("strategy", "correction", "ratio", "batch_size")  # differ between the lines of one table
DEFAULT = "default"  # stands for the default of an option whose class a preset chooses
UNKNOWN = "\0"  # placeholder for a setting that a record did not use

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


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
                for table in map(settings_table, lines.values())
                for key in table
                if key.partition(".")[0] in LINES[:2] and table[key].nunique() > 1
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


def _option_text(record: Record, key: str) -> str:
    """Return an option as part of a name; paths are named by their last part."""
    option = record.settings().get(key)
    if isinstance(option, list) and all(isinstance(item, str) for item in option):
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
    """List the warnings of runs; those that differ only in the strategy and in numbers are merged
    and counted.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for text in record.warnings:
            plain = text.removeprefix(f"{record.strategy}: ")
            key = re.sub(r"\d+(\.\d+)?", "", plain.replace(record.strategy, ""))
            texts[key].append(plain)
    return [
        f"{same[0]}{f' (in {len(same)} rows)' if len(same) > 1 else ''}" for same in texts.values()
    ]


def setting_title(key: str) -> str:
    """Return the title of a setting.

    >>> setting_title("decoding.max_new_tokens"), setting_title("num_examples")
    ('decoding max new tokens', 'examples')
    """
    return key.removeprefix("num_").replace("_", " ").replace(".", " ")


def varying(records: Sequence[Record], but: Collection[str] = ()) -> list[str]:
    """Return the settings in which records differ, without those of the parts `but`.

    An option of a config group is compared between records with the same choice in the group only.
    A key of the configuration is left out if an earlier setting has the same information, e.g. the
    path and the name of a model.
    """
    table = settings_table(records)
    varied: list[str] = []
    for key in table:
        part = key.partition(".")[0]
        known = table[key][table[key] != UNKNOWN]
        if part in but or known.nunique() < 2:
            continue
        if "." in key:
            choices = pd.Series([record.choice(key) for record in records])[known.index]
            if known.groupby(choices).nunique().max() < 2:
                continue
        is_shown = any(
            _follows(table[key], table[shown], part == shown.partition("_")[0]) for shown in varied
        )
        if key in SETTING_FIELDS or not is_shown:
            varied.append(key)
    return varied


def _follows(values: pd.Series, shown: pd.Series, names_choice: bool) -> bool:
    """Return True if a table need not show `values`, because `shown` tells them: equal shown values
    have equal values. The reverse must hold too, unless `shown` is the name of the strategy, say,
    whose option the values are.
    """
    pairs = pd.DataFrame({"shown": shown, "values": values}).drop_duplicates()
    pairs = pairs[(pairs != UNKNOWN).all(axis="columns")]
    return bool(pairs["shown"].is_unique and (names_choice or pairs["values"].is_unique))


def settings_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return the settings of records as texts, one line per record; records without a value have
    the default.
    """
    settings = [record.settings() for record in records]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    lines = [
        [str(values.get(key, default_of(key))) if record.knows(key) else UNKNOWN for key in keys]
        for record, values in zip(records, settings, strict=True)
    ]
    return pd.DataFrame(lines, columns=keys, dtype=object)


@cache
def default_of(key: str) -> object:
    """Return the default of a setting: None for a property that runs detect, or `DEFAULT`."""
    part, _, rest = key.partition(".")
    field = Config.model_fields.get(part)
    default = None
    if field and not field.is_required():
        default = field.get_default(call_default_factory=True)
    if not field or not rest:
        return default
    option = getattr(type(default), "model_fields", {}).get(rest)
    if option is None or option.is_required():
        return DEFAULT
    return option.get_default(call_default_factory=True)


def setting_text(record: Record, key: str) -> str:
    """Return the value of a setting as words, or a dash if the record has none or did not use
    it.
    """
    used = record.knows(key) or key in SETTING_FIELDS
    value = record.settings().get(key, default_of(key)) if used else None
    return MISSING if value in (None, DEFAULT, {}) else words(value)


def words(value: object) -> str:
    """Return a value as text: numbers of layers as ranges, and a mapping without its keys.

    >>> words([0, 1, 2, 5]), words({"file": "a.txt"})
    ('0-2, 5', 'a.txt')
    """
    if isinstance(value, dict):
        return " ".join(map(str, value.values()))
    if value and isinstance(value, list) and all(isinstance(item, int) for item in value):
        return listed(value)
    return str(value)


def grouped(records: Sequence[Record]) -> list[Group]:
    """Group records whose settings agree, in order of first appearance; see `LINES` for the
    settings that a group mixes.

    A setting that a record did not use agrees with every value, so such a record joins the first
    group that agrees otherwise.
    """
    if not records:
        return []
    table = settings_table(records)
    keys = [key for key in table if key.partition(".")[0] not in LINES]
    keys = [key for key in keys if table[key][table[key] != UNKNOWN].nunique() > 1]
    lines = [tuple(line) for line in table[keys].to_numpy()]
    group_of = _assigned(list(dict.fromkeys(lines)))
    members = collected(zip(lines, records, strict=True), lambda pair: group_of[pair[0]])
    known, named = table.mask(table == UNKNOWN), list[str]()
    for key in varying(records, but=LINES):
        # Settings that follow from those named before would repeat them.
        if (
            key not in NAMES
            and known.groupby([*NAMES, *named], dropna=False)[key].nunique().max() > 1
        ):
            named.append(key)
    groups = []
    for pairs in members.values():
        same = [record for _, record in pairs]
        best = next((record for record in done(same) if record.baseline_id), same[0])
        labels = [str(best.value(key)) for key in NAMES if best.value(key) is not None]
        texts = {key: setting_text(best, key) for key in named}
        labels += [f"{setting_title(key)} {text}" for key, text in texts.items() if text != MISSING]
        groups.append(Group(" · ".join(labels), same))
    return groups


def _assigned(lines: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Map every line of settings to a group: a complete line to its own group, an incomplete line
    to the first group that agrees.
    """
    group_of: dict[tuple[str, ...], tuple[str, ...]] = {}
    for line in sorted(lines, key=lambda line: line.count(UNKNOWN)):
        agreeing = (
            group
            for group in dict.fromkeys(group_of.values())
            if all(a == b or UNKNOWN in (a, b) for a, b in zip(line, group, strict=True))
        )
        group_of[line] = next(agreeing, line) if UNKNOWN in line else line
    return group_of


def collected(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Return lists of items by key, in order of first appearance."""
    lists: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        lists[key(item)].append(item)
    return lists
