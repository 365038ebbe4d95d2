"""The command `ulskip generate`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ulskip_cli.cli.shared import (
    ConfigDir,
    Json,
    PrintConfig,
    each_key_once,
    make_console,
    print_rows,
    print_yaml,
    tell_unused,
)
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import printable, printable_lines

if TYPE_CHECKING:
    from ulskip_cli.cli.progress_bars import ProgressBars
    from ulskip_cli.experiments.comparison import PromptComparer

EXAMPLE = "e.g. ulskip generate 'Ich habe Hunger.' ratio=2"


def generate(
    overrides: Annotated[
        list[str],
        typer.Argument(
            default_factory=list,
            callback=each_key_once,
            metavar="PROMPT [KEY=VALUE]...",
            help="The prompt, or - for standard input; then key=value, e.g. ratio=2.0. Without a"
            " prompt, those of the named task, e.g. task=jsonl task.file=prompts.txt."
            " `ulskip config` lists all keys.",
            show_default=False,
        ),
    ],
    config_dir: ConfigDir = None,
    as_json: Json = False,
    print_config: PrintConfig = False,
) -> None:
    """Answer a prompt with the full model and then with the kept layers, and show the speed of each
    and the first difference; nothing is stored, except calibrations.

    Example: ulskip generate 'Ich habe Hunger.' ratio=2
    """
    from ulskip_cli.core import config

    prompt, overrides = _split(overrides)
    chosen = config.compose_prompts(overrides)
    if print_config:
        print_yaml(chosen)
        return
    from ulskip_cli.experiments.point import resolve_prompts

    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode().rstrip("\n")
    # Before slower imports, so that usage errors answer at once.
    point = resolve_prompts(chosen, prompt)
    tell_unused(overrides, [chosen])
    from ulskip_cli.cli.progress_bars import ProgressBars

    with ProgressBars(chosen.model.label) as bars:
        from ulskip_cli.experiments.comparison import PromptComparer
        from ulskip_cli.experiments.runner import Models

        comparer = PromptComparer(point, Models(bars))
        indices = range(len(comparer.workload.examples))
        if as_json:
            rows = [comparer.compare(index).as_dict() for index in indices]
        else:
            for index in indices:
                _compare_and_show(comparer, index, bars)
    if as_json:
        print_rows(rows)


def _split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate the prompt, the first word, from the overrides. It is None if that is an override;
    then a task must be named, whose prompts are answered.
    """
    first, *others = words or [""]
    is_override = _is_override(first)
    names_task = any(word.startswith("task=") for word in words)
    if not first or (is_override and not names_task):
        got = f"'{first[:80]}'" if first else "none"
        raise UsageError(
            f"expected a prompt before the keys, got {got}; {EXAMPLE}, write - to read standard"
            " input, or name a task whose prompts are answered"
        )
    if is_override:
        return None, [first, *others]
    loose = [word for word in others if "=" not in word]
    if loose:
        raise UsageError(
            f"expected key=value after the prompt, got '{loose[0][:80]}'; put the prompt in quotes"
            f" and a value after each key, {EXAMPLE}"
        )
    return first, others


def _is_override(word: str) -> bool:
    """Return True for the word of a known key; a prompt can contain `=`, too."""
    from ulskip_cli.core.config_schema import Config

    section = word.lstrip("+").partition("=")[0].partition(".")[0]
    is_known = section in (*Config.model_fields, "experiment")
    return is_known and "=" in word and len(word.split()) == 1


def _compare_and_show(comparer: "PromptComparer", index: int, bars: "ProgressBars") -> None:
    """Show the answers to one prompt while they are generated; above the first prompt, also the
    notes that hold for all prompts.
    """
    console = make_console()
    began = list[int]()  # sides whose answer began: 0 is the full model, 1 the kept layers
    bars.pause()
    if index == 0:
        console.print(printable(comparer.prompt_note), style="dim")
        if comparer.caution:
            console.print(comparer.caution, style="yellow", soft_wrap=False)
    if len(comparer.workload.examples) > 1:
        console.print(f"\n{printable(comparer.workload.examples[index].source)}", style="bold")

    def show(side: int, piece: str) -> None:
        """Print the next piece of an answer, the first below a heading."""
        if piece:  # until the first text, a bar shows that the prompt is read
            bars.pause()
        if side not in began:
            if began:
                console.print()  # ends the line of the other answer
            console.print(f"\n{comparer.heads[side]}:")
            began.append(side)
        console.print(printable_lines(piece), end="")

    comparison = comparer.compare(index, show)
    bars.pause()
    console.print(f"\n\n{comparison.summary()}", soft_wrap=False)
