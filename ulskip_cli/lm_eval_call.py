"""A command line of `ulskip lm-eval`: overrides first, lm-evaluation-harness's own options behind them. Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ulskip_cli.checks import check_schedule
from ulskip_cli.config import compose
from ulskip_cli.errors import UsageError
from ulskip_cli.schema import Config

EXPERIMENT = "lm_eval"  # the name= of those that name none


@dataclass(frozen=True)
class Call:
    """What is asked.

    Attributes:
        config: the model under its schedule; None where the harness is asked for a model of its own.
        arguments: for the harness.
        output: where it leaves its own results.
    """

    config: Config | None
    arguments: list[str]
    output: Path


def read(arguments: Sequence[str]) -> Call:
    """Take a command line apart, refusing what cannot work before anything slow begins.

    >>> read(["--model", "dummy", "--tasks", "x", "--output_path", "out"]).output
    PosixPath('out')

    Raises:
        UsageError: the harness is missing, an override is none, or ulskip cannot serve it.
    """
    if find_spec("lm_eval") is None:
        raise UsageError("lm-eval needs lm-evaluation-harness: pip install 'ulskip[lm-eval]'")
    count = next((i for i, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    overrides, options = list(arguments[:count]), list(arguments[count:])
    if not options:
        raise UsageError("expected the harness's options behind the overrides, e.g. model=tiny ratio=2 --tasks arc_easy")
    other = _value(options, "--model", "-M")
    if other not in (None, "ulskip"):
        if overrides:
            raise UsageError(f"--model {other} is the harness's own, which takes no {overrides[0]}")
        output = Path(_value(options, "--output_path", "-o") or f"results/{EXPERIMENT}/{EXPERIMENT}")
        return Call(None, _with_output(options, output), output)
    if _value(options, "--model_args", "-a") is not None:
        raise UsageError(
            "expected overrides before the options instead of --model_args, e.g. model=tiny ratio=2 --tasks arc_easy"
        )
    if not any(text.startswith("name=") for text in overrides):
        overrides.append(f"name={EXPERIMENT}")
    config = compose(overrides)
    check_schedule(config)
    output = Path(_value(options, "--output_path", "-o") or Path(config.results_dir) / config.name / EXPERIMENT)
    given = json.dumps({"overrides": overrides})
    ours = ["--model_args", given] if other else ["--model", "ulskip", "--model_args", given]
    return Call(config, _with_output([*options, *ours], output), output)


def _with_output(options: list[str], output: Path) -> list[str]:
    return options if _value(options, "--output_path", "-o") else [*options, "--output_path", str(output)]


def _value(options: Sequence[str], *names: str) -> str | None:
    """What follows an option; None where it is not given."""
    for i, text in enumerate(options):
        name, equals, value = text.partition("=")
        if name in names:
            return value if equals else options[i + 1] if i + 1 < len(options) else ""
    return None
