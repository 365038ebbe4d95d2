"""The configuration keys of a command, as a list below its `--help`, and the command `ulskip
config`.
"""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from ulskip_cli.cli.completion import complete_config_name
from ulskip_cli.cli.options import ConfigDir, Json

if TYPE_CHECKING:
    from ulskip_cli.core.config_reference import ConfigKey

MAX_DEFAULT = 40  # characters of a default value that help shows


_PRIMARY_TITLES = (
    ("Other keys of run, sweep, bench and plan", "config"),
    ("Further keys of tune", "tune"),
    ("Other keys of train", "train"),
)


class CommandWithKeys(TyperCommand):
    """A command whose `--help` lists its configuration keys below its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words of the command line for `--help`, which is printed before they are
        parsed.
        """
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, options and keys, with the keys of those choices that the command line
        names.
        """
        print(f"{self.get_usage(ctx)}\n\n{inspect.cleandoc(self.help or '')}\n")
        options = [param for param in self.get_params(ctx) if isinstance(param, TyperOption)]
        _print_panel(
            "Options",
            {", ".join(sorted(option.opts, key=len)): _option_help(option) for option in options},
        )
        _print_command_keys(str(self.name), dict(named_choices(ctx.meta["words"])))


def config(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A group, e.g. strategy; a choice, e.g. strategy=early_exit; or a key.",
            show_default=False,
            autocompletion=complete_config_name,
        ),
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Print a JSON schema for editors, which checks your YAML files."
        ),
    ] = False,
) -> None:
    """List config groups, their choices and their keys, e.g. `ulskip config strategy` or `ulskip
    config speed.pairs`.
    """
    from ulskip_cli.core import config_reference as reference

    if schema:
        print(json.dumps(reference.json_schema(), indent=1))
        return

    group, _, choice = (name or "").partition("=")
    if not name:
        _show_groups(config_dir, as_json)
    elif group in reference.ALL_GROUPS:
        _show_group(group, choice, config_dir, as_json)
    else:
        _show_keys(name, config_dir, as_json)


def _option_help(option: TyperOption) -> str:
    return (option.help or "") + (
        f" [default: {option.default}]"
        if isinstance(option.default, str | int | Path) and option.default
        else ""
    )


def named_choices(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the group choices that words such as `task=jsonl` name, after those that they imply."""
    from ulskip_cli.core import config_reference as reference

    named = [(group, choice) for group, _, choice in (word.partition("=") for word in words)]
    known = [(group, choice) for group, choice in named if choice in reference.group_choices(group)]
    for group, choice in known:
        yield from reference.implied_choices(group, choice).items()
    yield from known


def _print_command_keys(command: str, chosen: Mapping[str, str]) -> None:
    from ulskip_cli.core import config_reference as reference

    defaults = {**reference.implied_choices("", reference.primary_of(command)), **chosen}
    groups = {
        f"{group}=": _choices_line(group, defaults.get(group))
        for group in reference.groups_of(command)
    }
    _print_panel("Config groups, given as group=choice", groups)
    sections: dict[str, list[ConfigKey]] = {"": []}
    for key in reference.command_keys(command, chosen):
        sections.setdefault(key.name.partition(".")[0] if "." in key.name else "", []).append(key)
    for section, members in sections.items():
        choice = f" of {section}={defaults[section]}" if section in defaults else ""
        title = f"Keys {section}.*{choice}" if section else "Keys, given as key=value"
        _print_panel(title, {key.name: _meaning(key) for key in members})
    print(
        " `ulskip config strategy` describes the choices of a group; `ulskip config"
        " strategy=search` lists the keys of one."
    )


def _choices_line(group: str, default: str | None) -> str:
    from ulskip_cli.core import config_reference as reference

    return f"{', '.join(reference.group_choices(group))}" + (
        f" [default: {default}]" if default else ""
    )


def _show_groups(extra_dir: Path | None, as_json: bool) -> None:
    from ulskip_cli.core import config_reference as reference

    groups = {
        group: list(reference.group_choices(group, extra_dir)) for group in reference.ALL_GROUPS
    }
    if as_json:
        print(json.dumps(groups))
        return
    _print_panel(
        "Config groups and their choices",
        {f"{group}=": ", ".join(names) for group, names in groups.items()},
    )
    of_run = {key.name for key in reference.top_level_keys("config")}
    for title, primary in _PRIMARY_TITLES:
        known = of_run if primary == "tune" else ()
        _print_panel(
            title,
            {
                key.name: _meaning(key)
                for key in reference.top_level_keys(primary)
                if key.name not in known
            },
        )
    print("`ulskip config strategy` describes the choices of a group and lists its keys.")


def _show_group(group: str, choice: str, extra_dir: Path | None, as_json: bool) -> None:
    from ulskip_cli.core import config_reference as reference
    from ulskip_cli.core.errors import require_choice

    described = reference.describe_choices(group, extra_dir)
    if choice:
        choice = (
            choice
            if choice in described
            else require_choice(group, choice.replace("-", "_"), described)
        )
        described = {choice: described[choice]}
    keys = {name: reference.group_keys(group, name, extra_dir) for name in described}
    if as_json:
        entries = {
            name: {"description": text, "keys": [asdict(key) for key in keys[name]]}
            for name, text in described.items()
        }
        print(json.dumps(entries, default=str))
        return
    _print_panel(
        f"Choices of {group}", {f"{group}={name}": text for name, text in described.items()}
    )
    if group not in ("task", "strategy") and not choice:
        default = reference.default_choice(group)
        keys = {name: members for name, members in keys.items() if name == default}
    for name, members in keys.items():
        if members:
            _print_panel(f"Keys of {group}={name}", {key.name: _meaning(key) for key in members})


def _show_keys(name: str, extra_dir: Path | None, as_json: bool) -> None:
    from ulskip_cli.core import config_reference as reference
    from ulskip_cli.core.errors import unknown

    keys = {
        key.name: key for primary in reference.PRIMARY for key in reference.top_level_keys(primary)
    }
    group = name.partition(".")[0]
    if (
        group in reference.ALL_GROUPS
    ):  # keys of the default choice first, because other choices have other defaults
        default = reference.default_choice(group)
        for choice in sorted(
            reference.group_choices(group, extra_dir), key=lambda candidate: candidate != default
        ):
            keys = keys | {
                key.name: key
                for key in reference.group_keys(group, choice, extra_dir)
                if key.name not in keys
            }
    shown = [key for key in keys.values() if key.name == name or key.name.startswith(f"{name}.")]
    if not shown:
        raise unknown(
            "config group or key", name, [*reference.ALL_GROUPS, *keys], "`ulskip config` lists all"
        )
    if as_json:
        print(json.dumps([asdict(key) for key in shown], default=str))
        return
    _print_panel(f"Keys of {name}", {key.name: _meaning(key) for key in shown})


def _meaning(key: "ConfigKey") -> str:
    value = json.dumps(key.default, ensure_ascii=False).replace('"', "")
    shown = value if len(value) <= MAX_DEFAULT else value[: MAX_DEFAULT - 1] + "…"
    return (
        key.meaning
        + (f" [{'|'.join(key.choices)}]" if key.choices else "")
        + f" [default: {shown}]"
    )


def _print_panel(title: str, entries: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column()
    for name, text in entries.items():
        table.add_row(Text(name), Text(text))
    Console(highlight=False).print(
        Panel(table, title=Text(title), title_align="left", border_style="dim")
    )
