"""Records of results folders: reading them, the settings in which they differ, and groups of one
setting.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.printable import all_printable, printable
from ulskip_cli.experiments.record import MISSING, SETTING_FIELDS, Record, read
from ulskip_cli.experiments.results import ResultsFolder

FILE = "runs.jsonl"
MAX_FOLDERS_NAMED = 8
MAX_REASONS = 5
NAMES = ("model", "task", "pair", "decoding")  # begin the label of every group
LINES = (
    "strategy",
    "correction",
    "ratio",
    "batch_size",
)  # parts in which the lines of one table differ
DEFAULT = "default"  # stands for the default of an option whose class a preset chooses
UNKNOWN = "\0"  # placeholder for a setting that a record did not use


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
        """The names of the records' strategies, which also differ where only an option of strategy
        or correction does.
        """
        names: dict[tuple[str, str], list[str]] = {}
        by_strategy = _collected(self.records, lambda record: record.strategy)
        for records in by_strategy.values():
            options = [
                {k: v for k, v in record.strategy_options.items() if k != "unit"}
                for record in records
            ]
            several = len(set(map(str, options))) > 1
            for record, values in zip(records, options, strict=True):
                names[record.key] = [
                    record.strategy_name,
                    *(map(str, values.values()) if several else ()),
                ]
                if record.correction:
                    names[record.key].append(f"+ {record.correction.label}")
        for records in by_strategy.values():
            lines = _collected(
                records,
                lambda record: (*names[record.key], record.target_speedup, record.batch_size),
            )
            frames = [settings_table(same) for same in lines.values() if len(same) > 1]
            parts = LINES[:2]  # the others have columns of their own
            keys = [
                key
                for table in frames
                for key in table
                if key.partition(".")[0] in parts and table[key].nunique() > 1
            ]
            for key in dict.fromkeys(keys):
                for record in records:
                    if (text := _option_text(record.settings().get(key))) is not None:
                        names[record.key].append(text)
        return {key: " ".join(parts) for key, parts in names.items()}

    def approach(self, record: Record) -> str:
        """Name a record's strategy, its unit and its correction, and the options in which the
        group's records differ.
        """
        return self._approaches[record.key]

    def called(self, record: Record) -> str:
        """Return the name of a point, e.g. `unified 2x`."""
        if record.target_speedup:
            return f"{self.approach(record)} {record.target_speedup:g}x"
        return f"{self.approach(record)}, {len(record.kept_layers or ())} layers"

    def points(self) -> dict[tuple[float, str], dict[int, Record]]:
        """Return the last record of every target, approach and batch size, in the order of the
        paper's table 4.
        """
        points: dict[tuple[float, str], dict[int, Record]] = defaultdict(dict)
        records = [
            (point_order((record.target_speedup, record.strategy)), record)
            for record in self.records
            if record.target_speedup
        ]
        for _, record in sorted(records, key=lambda item: item[0]):
            assert record.target_speedup is not None
            points[record.target_speedup, self.approach(record)][record.batch_size] = record
        return points


def _option_text(option: Any) -> str | None:
    """Return an option as part of a name; paths are named by their last part."""
    if option is None:
        return None
    if isinstance(option, list) and all(isinstance(item, str) for item in option):
        return ", ".join(Path(item).name for item in option)
    return Path(option).name if isinstance(option, str) else str(option)


def point_order(point: tuple[float, str]) -> tuple[float, bool, str]:
    """Return the sort key of a target and approach: sort by target, then by name with unified
    last.
    """
    return point[0], point[1] == "unified", point[1]


def find_folders(named: Sequence[Path], results_dir: Path) -> list[Path]:
    """List the results folders that folders, parent folders or runs.jsonl files name; by default,
    all in `results_dir`.
    """
    folders: dict[Path, None] = {}
    for path in named or [results_dir]:
        folder = path.parent if path.name == FILE else path
        below = (
            [folder]
            if (folder / FILE).is_file()
            else sorted(file.parent for file in folder.glob(f"*/{FILE}"))
        )
        if not below:
            if (folder / "generations").is_dir():
                raise UsageError(
                    f"expected finished points in '{path}', got none; repeat the run's command to"
                    " resume it"
                )
            known = [str(file.parent) for file in sorted(results_dir.glob(f"*/{FILE}"))]
            more = (
                f" and {len(known) - MAX_FOLDERS_NAMED} more"
                if len(known) > MAX_FOLDERS_NAMED
                else ""
            )
            hint = (
                f"known: {', '.join(known[:MAX_FOLDERS_NAMED])}{more}"
                if known
                else "make one with `ulskip sweep`"
            )
            raise UsageError(
                f"expected a folder of results with {FILE}, or a folder of such folders, got"
                f" '{path}'; {hint}"
            )
        folders.update(dict.fromkeys(below))
    for path in folders:
        if not str(path).isprintable():
            raise UsageError(
                f"expected a folder with a printable name, got '{printable(str(path))}'; rename it"
            )
    return list(folders)


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read the records of results folders for display, and warn about refused lines."""
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

    def order(record: Record) -> tuple[str, str, float, str]:
        ratio = record.target_speedup or record.layer_ratio or 0.0
        return str(record.model), str(record.pair), ratio, record.strategy

    return sorted(records, key=order)


def reasons(records: Iterable[Record]) -> list[str]:
    """List the reasons why points have no result, with strategies; reasons that differ only in `got
    NUMBER` are merged.
    """
    by_reason: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    first: dict[str, str] = {}
    for record in records:
        if not record.is_done:
            reason = record.reason or "no reason given"
            reason = first.setdefault(re.sub(r"got \d+", "got", reason), reason)
            by_reason[record.absent, reason][record.strategy] = None
    lines = [
        f"{word} ({', '.join(strategies)}): {reason}"
        for (word, reason), strategies in by_reason.items()
    ]
    return [
        *lines[:MAX_REASONS],
        *[f"and {len(lines) - MAX_REASONS} more reasons"] * (len(lines) > MAX_REASONS),
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
    A key of the configuration that says the same as a setting before it, as the path of a model and
    its name, is not listed again.
    """
    table = settings_table(records)
    varied: dict[str, pd.Series] = {}
    for key in table:
        if key.partition(".")[0] in but:
            continue
        known = table[key][table[key] != UNKNOWN]
        if known.nunique() < 2:
            continue
        if "." in key:
            choices = pd.Series([record.choice(key) for record in records])[known.index]
            if known.groupby(choices).nunique().max() < 2:
                continue
        is_shown = any(
            _follows(table[key], shown, key.partition(".")[0] == other.partition("_")[0])
            for other, shown in varied.items()
        )
        if key in SETTING_FIELDS or not is_shown:
            varied[key] = table[key]
    return list(varied)


def _follows(values: pd.Series, shown: pd.Series, own: bool) -> bool:
    """Return True if values follow from shown ones, and unless those name the group's `own` choice,
    the reverse too.
    """
    pairs = pd.DataFrame({"shown": shown, "values": values}).drop_duplicates()
    pairs = pairs[(pairs["shown"] != UNKNOWN) & (pairs["values"] != UNKNOWN)]
    return bool(pairs["shown"].is_unique and (own or pairs["values"].is_unique))


def settings_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return the settings of records as texts, one line per record; records without a value have
    the default.
    """
    settings = [record.settings() for record in records]
    keys = dict.fromkeys(key for values in settings for key in values)
    lines = [
        [str(values.get(key, default_of(key))) if record.knows(key) else UNKNOWN for key in keys]
        for record, values in zip(records, settings, strict=True)
    ]
    return pd.DataFrame(lines, columns=list(keys), dtype=object)


@cache
def default_of(key: str) -> Any:
    """Return the default of a setting, or `DEFAULT`."""
    part, _, rest = key.partition(".")
    field = Config.model_fields.get(part)
    if field is None:
        return None  # found out by the run
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if not rest:
        return default
    known = getattr(type(default), "model_fields", {}).get(rest)
    return (
        known.get_default(call_default_factory=True)
        if known and not known.is_required()
        else DEFAULT
    )


def setting_text(record: Record, key: str) -> str:
    """Return the value of a setting as words, or a dash if the record has none or did not use
    it.
    """
    value = (
        record.settings().get(key, default_of(key))
        if record.knows(key) or key in SETTING_FIELDS
        else None
    )
    if value == DEFAULT:
        return MISSING
    if isinstance(value, dict):
        return " ".join(map(str, value.values())) or MISSING
    return MISSING if value is None else str(value)


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
    lines = list(map(tuple, table[keys].itertuples(index=False, name=None)))
    group_of = _assigned(list(dict.fromkeys(lines)))
    members = _collected(list(enumerate(records)), lambda item: group_of[lines[item[0]]])
    firsts = [pairs[0][1] for pairs in members.values()]
    named = [key for key in varying(records, but=LINES) if key not in NAMES]
    groups = []
    for indexed, first in zip(members.values(), firsts, strict=True):
        best = next(
            (record for _, record in indexed if record.is_done and record.baseline_id), first
        )
        labels = [str(best.value(key)) for key in NAMES if best.value(key) is not None]
        labels += [
            f"{setting_title(key)} {text}"
            for key in named
            if (text := setting_text(best, key)) != MISSING
        ]
        groups.append(Group(" · ".join(labels), [record for _, record in indexed]))
    return groups


def _assigned(lines: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Map every line of settings to a group: a complete one to itself, an incomplete one to the
    first that agrees.
    """
    groups = [line for line in lines if UNKNOWN not in line]
    group_of = {line: line for line in groups}
    for line in sorted(
        set(lines) - set(groups), key=lambda line: (line.count(UNKNOWN), lines.index(line))
    ):
        agreeing = (
            group
            for group in groups
            if all(a == b or UNKNOWN in (a, b) for a, b in zip(line, group, strict=True))
        )
        group_of[line] = next(agreeing, line)
        if group_of[line] is line:
            groups.append(line)
    return group_of


def _collected(items: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    collected: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        collected[key(item)].append(item)
    return collected
