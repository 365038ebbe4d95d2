"""The settings of records, and those that tell records apart: the one answer to "which keys may
rows be grouped by, and which names a label?".

A setting is a name that stands for several values, a used value of the configuration, or a property
that a run detected, such as the device. A setting that a record does not have agrees with every
value: a full model uses no ratio, and a failed run detected no device.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.engines import AUTO
from ulskip_cli.core.options import Options, has_field
from ulskip_cli.core.schedule import listed
from ulskip_cli.experiments.record import DETECTED, NOT_APPLICABLE, Outcome, Record, Settings

NAMES = ("model", "task", "pair", "decoding")  # properties that name several settings at once


def settings(record: Record) -> dict[str, object]:
    """Return all settings of a record by key: its names, what its run detected, and the values of
    its configuration, e.g. of `strategy.spacing`.
    """
    values = {name: getattr(record, name) for name in ("folder", *NAMES)}
    detected = {name: record.value(name) for name in DETECTED}
    if not record.is_done:  # a failed run may have ended before it detected them
        detected = {name: value for name, value in detected.items() if value is not None}
    values |= detected
    values |= _used(record, record.config)
    values.pop("speed.enabled", None)  # a row without speed may join one with it
    engine = values.pop("engine.name", AUTO)
    # In rows of earlier versions, drafts and early exit have their own engines.
    if record.engine and not (record.draft_tokens or record.config.strategy.exits_early):
        engine = record.engine
    values["engine"] = engine
    if engine == AUTO:
        del values["engine"]
    return values


def _used(record: Record, options: Options, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values that the command of a record uses and that change its results, by key."""
    for name, value in options:
        key = f"{prefix}{name}"
        if not record.config.changes_results(key, record.command):
            continue
        if isinstance(value, Options):
            yield from _used(record, value, f"{key}.")
        else:
            yield key, value


def all_settings(records: Sequence[Record]) -> list[dict[str, object]]:
    """Return the settings of each record. An option that only some choices have, and a key that
    this version does not know, are None in the records that lack them.
    """
    rows = list(map(settings, records))
    for key in dict.fromkeys(key for row in rows for key in row if key not in DETECTED):
        for row in () if has_field(Config, key) else rows:
            row.setdefault(key, None)
    return rows


def differences(
    rows: Sequence[Mapping[str, object]],
    already_named: Sequence[str] = (),
    except_sections: Collection[str] = (),
    always: Collection[str] = (),
) -> list[str]:
    """Return the settings that tell rows apart. A setting is among them if it differs between rows
    that are equal in `already_named` and in all settings returned before it; one of `always`, if it
    differs between any rows. Settings of `except_sections` are left out.

    >>> rows = [{"model": "a", "seed": 1}, {"model": "b", "seed": 2}, {"model": "b", "batch": 8}]
    >>> differences(rows), differences(rows, always=["seed"])
    (['model'], ['model', 'seed'])
    """
    named = list(already_named)
    keys = dict.fromkeys(key for row in rows for key in row)
    for key in keys:
        if section_of(key) in except_sections:
            continue
        earlier = () if key in always else tuple(named)
        values = defaultdict[object, set[str]](set)  # of rows that are equal in `earlier`
        for row in rows:
            if key in row:
                values[tuple(repr(row.get(name)) for name in earlier)].add(repr(row[key]))
        if any(len(different) > 1 for different in values.values()):
            named.append(key)
    return named[len(already_named) :]


def section_of(key: str) -> str:
    """Return the section of a key, e.g. `strategy` of `strategy.spacing`."""
    return key.partition(".")[0]


def key_title(key: str) -> str:
    """Return a key in words.

    >>> key_title("speed.new_tokens"), key_title("num_examples")
    ('speed new tokens', 'examples')
    """
    return key.removeprefix("num_").replace("_", " ").replace(".", " ")


def setting_text(record: Record, key: str) -> str:
    """Return the value of a setting in words, empty if the record has none or did not use it."""
    value = settings(record).get(key)
    if key == "engine" and record.engine:  # also that of drafts, which agrees with every engine
        value = record.engine
    return "" if value in (None, {}, ()) else words(value)


def setting_words(record: Record, keys: Iterable[str]) -> list[str]:
    """Name the values of some settings, without those that the record does not have."""
    return [f"{key_title(key)} {text}" for key in keys if (text := setting_text(record, key))]


def words(value: object) -> str:
    """Return a value as text: numbers of layers as ranges, and a mapping without its keys.

    >>> words([0, 1, 2, 5]), words({"file": "a.txt"}), words(("bleu", "chrf"))
    ('0-2, 5', 'a.txt', 'bleu chrf')
    """
    if isinstance(value, dict):
        return " ".join(map(str, value.values()))
    if value and isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return listed(value)
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def point_labels(points: Sequence[Settings]) -> list[str]:
    """Name points by strategy, ratio and the settings that tell them apart, e.g. `unified ratio 2
    batch size 8`.
    """
    # Points have not run: with this status, the settings that a run detects count as unknown.
    records = [Record.joined(point, Outcome(status=NOT_APPLICABLE)) for point in points]
    rows = [
        {"label": record.label, "engine": AUTO, **row}  # `settings` leaves out an engine of auto
        for record, row in zip(records, all_settings(records), strict=True)
    ]
    keys = differences(rows, already_named=("label", "ratio"))
    labels = []
    for record in records:
        ratio = [f"ratio {record.config.ratio:.4g}"] if record.uses("ratio") else []
        labels.append(" ".join([record.label, *ratio, *setting_words(record, keys)]))
    return labels
