"""Print docs/combinations.md and the keys in docs/results.md; the site gets a page of all
configuration keys, too.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from ulskip_cli.core import config_reference as reference
from ulskip_cli.core.capabilities import ALL, COMMANDS, TOGETHER, Need
from ulskip_cli.core.config_reference import ConfigKey
from ulskip_cli.core.engines import engine_class, engine_names
from ulskip_cli.experiments.record import (
    REPEATED,
    LmEval,
    Outcome,
    Quality,
    Record,
    Section,
    Settings,
)
from ulskip_cli.report.tables import markdown_table
from ulskip_cli.tasks import metrics

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS = [section for section in Record.__bases__[::-1] if section is not Outcome]
SECTION_TITLES = (
    *("Request", "Schedule", "Timed pairs", "Quality", "Throughput"),
    *("Rows of lm-eval", "Provenance"),
)
HEADS = ("key", "meaning", "type", "default", "commands")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield from (markdown_table(heads, rows, len(heads)), "")


def refusals(supports: Mapping[str, frozenset[Need]]) -> Iterator[str]:
    """Yield a list of what engines, commands or needs do not support, of which `supports` has the
    others by name; those that do not support the same share an item.
    """
    names_by_supported: dict[frozenset[Need], list[str]] = {}
    for name, supported in supports.items():
        names_by_supported.setdefault(supported, []).append(name)
    for supported, names in names_by_supported.items():
        if supported != ALL:
            yield f"- {', '.join(names)}: no {texts(ALL - supported)}"
    yield ""


def texts(needs: Set[Need]) -> str:
    """Return the texts of needs in the order of their declaration."""
    return ", ".join(need.text for need in Need if need in needs)


def combinations() -> str:
    """Return the page of combinations: the engines of ulskip itself, not those of plugins that are
    installed, then commands, then options.
    """
    classes = {name: engine_class(name) for name in engine_names() if name != "auto"}
    builtin = [name for name in classes if classes[name].__module__.startswith("ulskip_cli.")]
    engines = {
        f"`{name}`": classes[name].supports
        for name in sorted(builtin, key=lambda name: classes[name].decodes_outside_torch)
    }
    commands = {f"`{name}`": supports for name, supports in COMMANDS.items()}
    # Two needs work together only if both support each other.
    together = {
        need.text: frozenset(
            other for other in ALL if other in supports and need in TOGETHER.get(other, ALL)
        )
        for need, supports in TOGETHER.items()
    }
    pages = [
        "# What works with what",
        "",
        "Options that are not listed here work together, but some models refuse some options.",
        "Errors name an option that works.",
        "",
        "## Engines",
        "",
        *refusals(engines),
        "## Commands",
        "",
        *refusals(commands),
        "## Options that exclude others",
        "",
        *refusals(together),
    ]
    return "\n".join(pages).rstrip() + "\n"


def keys() -> str:
    """Return the page of configuration keys: those of experiments, then those that only tune and
    only train have, then those of each group's choices.
    """
    pages = [
        "# Configuration keys",
        "",
        "Every key is written `key=value` on the command line. `ulskip config KEY` prints the same",
        "texts.",
        "",
    ]
    for primary, title in (("config", "Keys of experiments"), ("tune", "Keys of `ulskip tune`")):
        shared = reference.keys_outside_groups("config") if primary != "config" else []
        shown = [key for key in reference.keys_outside_groups(primary) if key not in shared]
        pages += [f"## {title}", "", *key_table(shown)]
    shared = {key.name for key in reference.keys_outside_groups("config")}
    training = [key for key in reference.keys_outside_groups("train") if key.name not in shared]
    pages += ["## Keys of `ulskip train`", "", *key_table(training)]
    for group in reference.ALL_GROUPS:
        pages += group_section(group)
    return "\n".join(pages).rstrip() + "\n"


def row_keys() -> str:
    """Return the reference of the keys of a row, which docs/results.md contains: those of the
    outcome, then those of each other section.
    """

    def lines(section: type[Section], but: Iterable[str] = ()) -> list[str]:
        """Return the items of the list of a section's keys, without the keys `but`. Keys with the
        same meaning, and the ends of an interval, share the item.
        """
        fields = section.model_fields
        ends = {f"{key}{end}" for key in fields for end in ("_low", "_high")}
        keys_by_meaning: dict[str | None, list[str]] = {}
        for key in fields:
            if key not in ends.union(but):
                name = f"`{key}`{' (`_low`, `_high`)' if f'{key}_low' in fields else ''}"
                keys_by_meaning.setdefault(fields[key].description, []).append(name)
        return [f"- {', '.join(names)}: {text}." for text, names in keys_by_meaning.items()]

    parts = lines(Outcome)
    for section, title in zip(SECTIONS, SECTION_TITLES, strict=True):
        parts += [f"\n### {title}\n"]
        if section is LmEval:
            parts += [f"{section.__doc__}\n"]
        if section is Quality:
            parts += ["- `bleu`, `rouge1`, ...: the task's [metrics](your-own.md#metrics)."]
        parts += lines(section, metrics.METRIC_OF)
        if section is Settings:
            parts += [f"\nSettings, repeated: {', '.join(f'`{key}`' for key in REPEATED)}."]
    return "\n".join(parts) + "\n"


def group_section(group: str) -> Iterator[str]:
    """Yield the choices of a group, and each of their keys once, as the default choice has it, if
    it does; the last column names the choices that have the key, unless all do.
    """
    yield from (f"## `{group}`", "")
    choices = reference.describe_choices(group)
    yield from table(
        ["choice", ""], ([f"`{group}={name}`", cell(text)] for name, text in choices.items())
    )
    keys_by_name: dict[str, ConfigKey] = {}
    choices_with: dict[str, list[str]] = {}
    default = reference.default_choice(group)
    for choice in sorted(choices, key=lambda name: name != default):
        for key in reference.group_keys(group, choice):
            keys_by_name.setdefault(key.name, key)
            choices_with.setdefault(key.name, []).append(choice)
    if keys_by_name:
        only_with = {
            name: "" if len(having) == len(choices) else ", ".join(having)
            for name, having in choices_with.items()
        }
        rows = ([*row(key)[:-1], only_with[name]] for name, key in keys_by_name.items())
        yield from table((*HEADS[:-1], "only with"), rows)


def key_table(shown: Iterable[ConfigKey]) -> Iterator[str]:
    """Yield a table of keys."""
    yield from table(HEADS, map(row, shown))


def row(key: ConfigKey) -> list[str]:
    """Return the cells of a key in the columns HEADS."""
    kind = ", ".join(f"`{choice}`" for choice in key.choices) or cell(key.type)
    return [
        f"`{key.name}`",
        cell(key.meaning),
        kind,
        default_cell(key.default),
        ", ".join(key.commands),
    ]


def default_cell(value: Any) -> str:
    """Return a default value in code, shortened."""
    if isinstance(value, list | dict) and len(str(value)) > 40:
        return "…"
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("\n...")
    return f"`{cell(text)}`"


def cell(text: str) -> str:
    """Return a text that does not end a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    (DOCS / "combinations.md").write_text(combinations(), "utf-8")
    results = DOCS / "results.md"
    introduction, start, _ = results.read_text("utf-8").partition("- `status`")
    assert start
    results.write_text(introduction + row_keys(), "utf-8")
