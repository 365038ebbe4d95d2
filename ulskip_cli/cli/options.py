"""Options and arguments that several commands share, and the shell completion of `key=value`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Context
from typer._click.shell_completion import CompletionItem, add_completion_class
from typer._completion_classes import BashComplete
from typer._completion_shared import COMPLETION_SCRIPT_BASH, _completion_scripts

from ulskip_cli.core.files import user_path

Completion = tuple[str, str]  # a completed word and its help text


class BashCompleteOverrides(BashComplete):
    """Completion for bash, which splits `key=value` at the equals sign and completes only the part
    after the sign.
    """

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor and the word at the cursor, with `key`, `=` and
        `value` joined again.
        """
        before, word = super().get_completion_args()
        *before, word = re.sub(r"\n?=\n?", "=", "\n".join([*before, word])).split("\n")
        return before, word

    def format_completion(self, item: CompletionItem) -> str:
        """Return the part after the equals sign, which is what bash replaces."""
        return (
            str(item.value).rpartition("=")[2]
            if "=" in self.get_completion_args()[1]
            else str(item.value)
        )


def install_bash_completion() -> None:
    """Replace Typer's completion for bash; call it after Typer's own set-up."""
    add_completion_class(BashCompleteOverrides, "bash")
    no_space = "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n    return 0"
    _completion_scripts["bash"] = COMPLETION_SCRIPT_BASH.replace("    return 0", no_space)


def complete_override(context: Context, arguments: list[str], incomplete: str) -> list[Completion]:
    """Return the overrides that a command accepts and that begin with `incomplete`."""
    from ulskip_cli.cli.key_panels import named_choices
    from ulskip_cli.core import config_reference as reference

    command = str(context.command.name)
    groups = reference.groups_of(command)
    chosen = named_choices(context.params.get("overrides") or ())
    name, equals, value = incomplete.partition("=")
    keys = {key.name: key for key in reference.command_keys(command, chosen)}
    if not equals:
        names = dict.fromkeys(groups, "config group") | {
            key.name: key.meaning for key in keys.values()
        }
        matches = {
            key: text
            for key, text in names.items()
            if key.startswith(name) and ("." not in key or name)
        }
        if len(matches) > 1 or name in matches:
            return [(f"{key}=", text) for key, text in matches.items()]
        name = next(iter(matches), name)
    done, comma, _ = value.rpartition(",")  # a sweep lists several values
    if name in groups:
        values = reference.describe_choices(name)
    elif name in keys:
        is_switch = keys[name].type == "true or false"
        listed = keys[name].choices or (
            ("true", "false") if is_switch else ("", keys[name].default or "")
        )
        values = dict.fromkeys(map(str, listed), keys[name].meaning)
    else:
        return []
    return [(f"{name}={done}{comma}{choice}", text) for choice, text in values.items()]


def complete_config_name(
    context: Context, arguments: list[str], incomplete: str
) -> list[Completion]:
    """Return the groups, or the choices of a group after `group=`, for `ulskip config`."""
    from ulskip_cli.core import config_reference as reference

    group, equals, _ = incomplete.partition("=")
    if equals and group in reference.ALL_GROUPS:
        return [
            (f"{group}={choice}", text)
            for choice, text in reference.describe_choices(group).items()
        ]
    return [(group, "config group") for group in reference.ALL_GROUPS]


def parse_path(text: str) -> Path:
    """Return the path of an option or an argument; raise UsageError if it is empty or not a valid
    path.
    """
    return user_path(text, "an option or argument")


PATH: dict[str, Any] = {"parser": parse_path, "metavar": "PATH"}

Overrides = Annotated[
    list[str],
    typer.Argument(
        default_factory=list,
        help="key=value, e.g. task=wmt ratio=2.0",
        show_default=False,
        autocompletion=complete_override,
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(**PATH, help="Folder of your own config groups, e.g. DIR/strategy/mine.yaml."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Force = Annotated[
    bool, typer.Option("--force", help="Measure again what is finished, baselines included.")
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print the configuration as YAML and stop."),
]
