"""Held-out examples for calibration. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from ulskip_cli.core.config import changed_choice
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Example, Task


@dataclass(frozen=True)
class HeldOutExamples:
    """Examples for calibration, which are not evaluated, and the task that makes their prompts."""

    task: Task
    examples: Sequence[Example]


def evaluated_examples(config: Config) -> list[Example]:
    """Return the examples that a run evaluates: `limit` examples behind the first `offset`; raise
    UsageError if none is.
    """
    examples = config.task.examples()
    if config.offset >= len(examples):
        raise UsageError(
            f"expected offset below the number of examples, {len(examples)}, got {config.offset}"
        )
    return examples[config.offset :][: config.limit]


def find_held_out(config: Config) -> HeldOutExamples | None:
    """Return the calibration examples, or None if no calibration is needed; raise UsageError if
    needed examples are missing.

    They are the examples of `calibration.task` that are not evaluated, or the task's own held-out
    ones, or the examples behind the evaluated ones; `calibration.offset` of them are left out.
    """
    if not config.needs_held_out:
        return None
    name, offset, task = config.strategy.name, config.calibration.offset, config.task
    chosen = slice(offset, offset + config.calibration.examples)
    if config.calibration.task is not None:
        source: Task = changed_choice(task, config.calibration.task, "calibration.task.")
        evaluated = {(example.source, example.reference) for example in evaluated_examples(config)}
        named = [
            example
            for example in source.examples()
            if (example.source, example.reference) not in evaluated
        ][chosen]
        if not named:
            raise UsageError(
                "expected examples in calibration.task that are not evaluated, got none; set other"
                " data in calibration.task"
            )
        return HeldOutExamples(source, named)
    held_out = task.held_out()
    if held_out is not None and (examples := held_out.examples()[chosen]):
        return HeldOutExamples(held_out, examples)
    examples = task.examples()
    behind = (
        examples[config.offset + config.limit :][chosen]
        if config.limit is not None and held_out is None
        else []
    )
    if not behind:
        raise UsageError(
            f"expected held-out examples to calibrate strategy={name}, got none; set limit=N below"
            f" {len(examples)} to calibrate on the examples after the first N, or name other data,"
            " e.g. calibration.task='{source_file: FILE}'"
        )
    return HeldOutExamples(task, behind)
