"""The commands that list config groups, keys and the environment, and commands whose `--help` lists
their keys.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from typer._click import Context, HelpFormatter
from typer.core import TyperCommand

from ulskip_cli.cli.shared import ConfigDir, Json

if TYPE_CHECKING:
    from ulskip_cli.core.config_reference import Panels


class CommandWithKeys(TyperCommand):
    """A command whose `--help` lists its configuration keys below its options."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Keep the words of the command line for `--help`, which is printed before they are
        parsed.
        """
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Print usage, options and keys, with the keys of choices on the command line."""
        from ulskip_cli.core.config_reference import command_panels

        super().format_help(ctx, formatter)
        _print_panels(command_panels(str(self.name), ctx.meta["words"]))
        print(
            " `ulskip config strategy` describes the choices of a group; `ulskip config"
            " strategy=search` lists the keys of one."
        )


def config(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A group, e.g. strategy; a choice, e.g. strategy=early_exit; or a key.",
            show_default=False,
        ),
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """List config groups, their choices and their keys, e.g. `ulskip config strategy` or `ulskip
    config speed.seconds`.
    """
    from ulskip_cli.core.config_reference import describe

    _print_panels(describe(name or ""))


def models(config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """List the models."""
    _list_group("model", as_json)


def tasks(config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """List the tasks."""
    _list_group("task", as_json)


def strategies(config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """List the strategies."""
    _list_group("strategy", as_json)


def env(as_json: Json = False) -> None:
    """Show versions, device, threads and instruction set, for bug reports."""
    from ulskip_cli.core import environment

    facts = {**environment.code(), **environment.machine()}
    if not as_json:
        facts |= facts.pop("packages")
    _print_facts(facts, as_json)


def _list_group(group: str, as_json: bool) -> None:
    from ulskip_cli.core.config_reference import describe_choices

    _print_facts(describe_choices(group), as_json)


def _print_facts(facts: Mapping[str, object], as_json: bool) -> None:
    width = max(map(len, facts))
    lines = [f"{key:<{width}}  {value}" for key, value in facts.items()]
    print(json.dumps(facts) if as_json else "\n".join(lines))


def _print_panels(panels: "Panels") -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for title, entries in panels:
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column()
        for name, text in entries.items():
            table.add_row(Text(name), Text(text))
        console.print(Panel(table, title=Text(title), title_align="left", border_style="dim"))
