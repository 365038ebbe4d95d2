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
    Point,
    Quality,
    Record,
    Section,
)
from ulskip_cli.report.tables import markdown_table
from ulskip_cli.tasks import metrics

DOCS = Path(__file__).parent.parent / "docs"
SECTIONS = Record.__bases__[::-1]
SECTION_TITLES = (
    *("Request", "Schedule", "Timed pairs", "Quality", "Throughput"),
    *("Rows of lm-eval", "Provenance"),
)
HEADS = ("key", "meaning", "type", "default", "commands")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield from (markdown_table(heads, rows, len(heads)), "")


def refusals(supports: Mapping[str, frozenset[Need]]) -> Iterator[str]:
    """Yield a list of what engines, commands or needs do not support; equal ones share an item."""
    names: dict[frozenset[Need], list[str]] = {}
    for name, supported in supports.items():
        names.setdefault(supported, []).append(name)
    for supported, group in names.items():
        if supported != ALL:
            yield f"- {', '.join(group)}: no {texts(ALL - supported)}"
    yield ""


def texts(needs: Set[Need]) -> str:
    """Return the texts of needs in the order of their declaration."""
    return ", ".join(need.text for need in Need if need in needs)


def combinations() -> str:
    """Return the page of combinations."""
    kinds = {name: engine_class(name) for name in engine_names() if name != "auto"}
    own = [name for name in kinds if kinds[name].__module__.startswith("ulskip_cli.")]
    engines = {
        f"`{name}`": kinds[name].supports
        for name in sorted(own, key=lambda name: kinds[name].is_runtime)
    }
    commands = {f"`{name}`": supports for name, supports in COMMANDS.items()}
    together = {
        need.text: frozenset(
            other for other in ALL if other in supports and need in TOGETHER.get(other, ALL)
        )
        for need, supports in TOGETHER.items()
    }
    pages = [
        "# What works with what",
        "",
        "Options that are not listed here work together, but drafts need `batch_size=1`, and some",
        "models refuse some options. Errors name an option that works.",
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
    """Return the page of configuration keys."""
    pages = [
        "# Configuration keys",
        "",
        "Every key is written `key=value` on the command line. `ulskip config KEY` prints the same",
        "texts.",
        "",
    ]
    for primary, title in (("config", "Keys of experiments"), ("tune", "Keys of `ulskip tune`")):
        shared = reference.top_level_keys("config") if primary != "config" else []
        shown = [key for key in reference.top_level_keys(primary) if key not in shared]
        pages += [f"## {title}", "", *key_table(shown)]
    shared = {key.name for key in reference.top_level_keys("config")}
    training = [key for key in reference.top_level_keys("train") if key.name not in shared]
    pages += ["## Keys of `ulskip train`", "", *key_table(training)]
    for group in reference.ALL_GROUPS:
        pages += group_section(group)
    return "\n".join(pages).rstrip() + "\n"


def row_keys() -> str:
    """Return the reference of the keys of a row, which docs/results.md contains."""

    def lines(kind: type[Section], but: Iterable[str] = ()) -> list[str]:
        fields = kind.model_fields
        ends = {f"{key}{end}" for key in fields for end in ("_low", "_high")}
        meanings: dict[str | None, list[str]] = {}
        for key in fields:
            if key not in ends.union(but):
                name = f"`{key}`{' (`_low`, `_high`)' if f'{key}_low' in fields else ''}"
                meanings.setdefault(fields[key].description, []).append(name)
        return [f"- {', '.join(names)}: {text}." for text, names in meanings.items()]

    parts = lines(Record, {"folder", *(key for kind in SECTIONS for key in kind.model_fields)})
    for kind, title in zip(SECTIONS, SECTION_TITLES, strict=True):
        parts += [f"\n### {title}\n"]
        if kind is LmEval:
            parts += [f"{kind.__doc__}\n"]
        if kind is Quality:
            parts += ["- `bleu`, `rouge1`, ...: the task's [metrics](your-own.md#metrics)."]
        parts += lines(kind, metrics.METRIC_OF)
        if kind is Point:
            parts += [f"\nSettings, repeated: {', '.join(f'`{key}`' for key in REPEATED)}."]
    return "\n".join(parts) + "\n"


def group_section(group: str) -> Iterator[str]:
    """Yield the choices of a group, and each of their keys once."""
    yield from (f"## `{group}`", "")
    choices = reference.describe_choices(group)
    yield from table(
        ["choice", ""], ([f"`{group}={name}`", cell(text)] for name, text in choices.items())
    )
    by_name: dict[str, ConfigKey] = {}
    users: dict[str, list[str]] = {}
    default = reference.default_choice(group)
    for choice in sorted(choices, key=lambda name: name != default):
        for key in reference.group_keys(group, choice):
            by_name.setdefault(key.name, key)
            users.setdefault(key.name, []).append(choice)
    if by_name:
        everywhere = len(choices)
        rows = (
            [*row(key)[:-1], "" if len(users[name]) == everywhere else ", ".join(users[name])]
            for name, key in by_name.items()
        )
        yield from table((*HEADS[:-1], "only with"), rows)


def key_table(shown: Iterable[ConfigKey]) -> Iterator[str]:
    """Yield a table of keys."""
    yield from table(HEADS, map(row, shown))


def row(key: ConfigKey) -> list[str]:
    """Return the cells of a key."""
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
