"""The commands that list config groups, keys and the environment."""

import json
from typing import Annotated

import typer

from ulskip_cli.cli.shared import ConfigDir, Json


def config(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A group, e.g. model; a choice, e.g. strategy=early_exit; or a key.",
            show_default=False,
        ),
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """List config groups, their choices and their keys, e.g. `ulskip config model` or `ulskip
    config speed.seconds`.
    """
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from ulskip_cli.core.config_reference import describe

    console = Console(highlight=False)
    for title, entries in describe(name or ""):
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column()
        for key, text in entries.items():
            table.add_row(Text(key), Text(text))
        console.print(Panel(table, title=Text(title), title_align="left", border_style="dim"))


def env(as_json: Json = False) -> None:
    """Show versions, device, threads and instruction set, for bug reports."""
    from ulskip_cli.core import environment

    facts = {**environment.code(), **environment.machine()}
    if as_json:
        print(json.dumps(facts))
        return
    facts |= facts.pop("packages")
    width = max(map(len, facts))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in facts.items()))
