"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ulskip_cli.core.files import user_path


def parse_path(text: str) -> Path:
    """Return the path of an option or an argument; raise UsageError if it is empty or not a valid
    path.
    """
    return user_path(text, "an option or argument")


def find_choices_in(folder: Path | None) -> Path | None:
    """Make the choices in a user's folder known to the command."""
    from ulskip_cli.core.config import use_config_dir

    use_config_dir(folder)
    return folder


PATH: dict[str, Any] = {"parser": parse_path, "metavar": "PATH"}

Overrides = Annotated[
    list[str],
    typer.Argument(
        default_factory=list,
        help="key=value, e.g. task=wmt ratio=2.0",
        show_default=False,
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        **PATH,
        callback=find_choices_in,
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
