"""Options and arguments that several commands share, and how commands print."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject, user_path

if TYPE_CHECKING:
    from rich.console import Console

    from ulskip_cli.core.config_schema import BaseConfig

PIPE_COLUMNS = 120  # of tables that go into a file or a pipe


def parse_path(text: str) -> Path:
    """Return the path of an option or argument; raise UsageError for an invalid one."""
    return user_path(text, "an option or argument")


def use_choices_of(folder: Path | None) -> Path | None:
    """Make the choices of a user's folder known, and return it, as typer asks."""
    from ulskip_cli.core.config import use_config_dir

    use_config_dir(folder)
    return folder


def each_key_once(words: list[str]) -> list[str]:
    """Return the words; raise UsageError if two of them set one key."""
    keys = Counter(word.partition("=")[0].lstrip("+") for word in words if "=" in word)
    for key, count in keys.items():
        if count > 1:
            raise UsageError(f"expected {key} once, got it {count} times; leave out all but one")
    return words


PATH: dict[str, Any] = {"parser": parse_path, "metavar": "PATH"}

Overrides = Annotated[
    list[str],
    typer.Argument(
        default_factory=list,
        callback=each_key_once,
        help="key=value, e.g. model=tiny; `ulskip config` lists all keys.",
        show_default=False,
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        **PATH,
        callback=use_choices_of,  # while typer parses, so commands need not read the value
        help="Folder of your own config groups, e.g. DIR/strategy/mine.yaml.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Force = Annotated[
    bool, typer.Option("--force", help="Measure again what is finished, baselines included.")
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print the configuration as YAML and stop."),
]


def tell_unused(overrides: Sequence[str], configs: Sequence["BaseConfig"]) -> None:
    """Print a line for each key that has no effect on any configuration."""
    for word in overrides:
        key = word.lstrip("+").partition("=")[0]
        reasons = [config.why_unused(key) for config in configs]
        if all(reasons):
            print(f"ulskip: {key} has no effect, because {reasons[0]}", file=sys.stderr)


def make_console(pipe_columns: int = PIPE_COLUMNS) -> "Console":
    """Return a console for standard output that shows texts as they are and wraps no lines."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else pipe_columns
    return Console(width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print a JSON value on one line."""
    print(json.dumps(value, ensure_ascii=False))


def print_rows(rows: Sequence[JsonObject]) -> None:
    """Print one row as a JSON object, several under the key `rows`."""
    print_json(rows[0] if len(rows) == 1 else {"rows": rows})


def print_yaml(*configs: "BaseConfig") -> None:
    """Print the first configuration as YAML, and the number of points."""
    from ulskip_cli.core.config import to_yaml

    if len(configs) > 1:
        print(f"# The first of {len(configs)} points")
    print(to_yaml(configs[0]), end="")
