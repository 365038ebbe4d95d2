"""The settings of records, and those in which records differ: the one answer to "which keys may
rows be grouped by, and which tell them apart?".

A setting is a used value of the configuration, or a property that a run detected, such as the
device. A setting that a record does not have agrees with every value: a full model uses no ratio,
and a failed run detected no device.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.options import Choice, Options
from ulskip_cli.experiments.record import DETECTED, Record

UNKNOWN = "unknown"  # choice of keys that this version does not know
NAMES = ("model", "task", "pair", "decoding")  # properties that name several settings at once


class Key(NamedTuple):
    """The key of a setting. The same option of two strategies is two keys."""

    name: str  # of the configuration, e.g. `strategy.spacing`, or of a detected property
    choice: str = ""  # the chosen strategy, task, correction or engine that has the option

    @property
    def part(self) -> str:
        """The section, e.g. `strategy`."""
        return self.name.partition(".")[0]

    @property
    def title(self) -> str:
        """The name in words.

        >>> Key("speed.new_tokens").title, Key("num_examples").title
        ('speed new tokens', 'examples')
        """
        return self.name.removeprefix("num_").replace("_", " ").replace(".", " ")


Settings = Mapping[Key, object]


def settings(record: Record) -> dict[Key, object]:
    """Return all settings of a record: its names, what its run detected, and the values of its
    configuration.
    """
    named = {Key(name): getattr(record, name) for name in ("folder", *NAMES)}
    detected = {Key(name): record.value(name) for name in DETECTED}
    if record.draft_tokens or record.config.strategy.exits_early:  # their engine follows from it
        del detected[Key("engine")]
    if not record.is_done:  # a failed run may have ended before it detected them
        detected = {key: value for key, value in detected.items() if value is not None}
    values = named | detected | config_settings(record.config, record.command)
    values.pop(Key("speed.enabled"), None)  # a row without speed may join one with it
    return values


def all_settings(records: Sequence[Record]) -> list[dict[Key, object]]:
    """Return the settings of each record. Keys that this version does not know are None in records
    that lack them, because there they had their defaults.
    """
    rows = list(map(settings, records))
    for key in dict.fromkeys(key for row in rows for key in row if key.choice):
        for row in rows:
            if key.choice in (UNKNOWN, row.get(Key(f"{key.part}.name"))):
                row.setdefault(key, None)
    return rows


def config_settings(config: Config, command: str = "run") -> dict[Key, object]:
    """Return the values of a configuration that a command uses and that change its results."""

    def walk(options: Options, prefix: str, choice: str) -> Iterator[tuple[Key, object]]:
        """Yield the settings of options; `choice` names the preset that they belong to, if any."""
        for name, value in options:
            key = f"{prefix}{name}"
            if not config.changes_results(key, command):
                continue
            if isinstance(value, Choice):
                yield Key(f"{key}.name"), value.name
                yield from walk(value, f"{key}.", value.name)
            elif isinstance(value, Options):
                yield from walk(value, f"{key}.", choice)
            elif not (choice and name == "name"):
                is_known = name in type(options).model_fields
                yield Key(key, choice if is_known or choice else UNKNOWN), value

    return dict(walk(config, "", ""))


def differences(rows: Sequence[Settings], but: Collection[str] = ()) -> list[Key]:
    """Return the settings in which rows differ, without those of the sections `but`.

    A key of the configuration is left out if an earlier one tells the same, e.g. the path of a
    model beside its name.
    """
    keys = dict.fromkeys(key for row in rows for key in row)
    texts = {key: [repr(row[key]) if key in row else None for row in rows] for key in keys}
    found: list[Key] = []
    for key, values in texts.items():
        if key.part in but or len({*values} - {None}) < 2:
            continue
        is_told = any(
            _follows(values, texts[told], is_choice=key.part == told.part) for told in found
        )
        if key.name in DETECTED or not is_told:
            found.append(key)
    return found


def _follows(values: Sequence[str | None], told: Sequence[str | None], is_choice: bool) -> bool:
    """Return True if rows with equal values of `told` have equal values, and every value occurs in
    such a row. The reverse must hold too, unless `told` is the choice whose option has the values.
    """
    pairs = {(a, b) for a, b in zip(told, values, strict=True) if a is not None and b is not None}
    firsts, seconds = ({pair[side] for pair in pairs} for side in (0, 1))
    is_told = len(firsts) == len(pairs) and seconds == {*values} - {None}
    return is_told and (is_choice or len(seconds) == len(pairs))
