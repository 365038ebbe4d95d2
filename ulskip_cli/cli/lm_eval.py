"""`ulskip lm-eval`: tasks of lm-evaluation-harness on a model that skips layers."""

from importlib.util import find_spec

import typer

from ulskip_cli.cli.shared import ConfigDir, Overrides, PrintConfig, make_console, print_yaml
from ulskip_cli.core.errors import UsageError


def lm_eval(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    """Run tasks of lm-evaluation-harness with layer skipping.

    Words behind `--` are options of the harness; `ulskip lm-eval -- --help` lists them.
    Example: ulskip lm-eval model=tiny ratio=2 -- --tasks arc_easy --limit 100
    """
    from ulskip_cli.core.config import compose

    options = (number for number, word in enumerate(overrides) if word.startswith("-"))
    end = next(options, len(overrides))
    keys, words = overrides[:end], overrides[end:]
    chosen = compose(keys, command="lm-eval")
    if print_config:
        print_yaml(chosen)
        return
    if find_spec("lm_eval") is None:
        raise UsageError("lm-evaluation-harness is missing; run: pip install 'ulskip[lm-eval]'")
    from ulskip_cli.cli.progress_bars import ProgressBars

    ProgressBars().note(f"load {chosen.model.label}")  # the harness has bars of its own
    from ulskip_cli.experiments.lm_eval_adapter import run_harness
    from ulskip_cli.report.tables import write_tables

    try:
        folder = run_harness(keys, chosen, words)
    except SystemExit as ended:  # after its help, or an error that it has printed
        raise typer.Exit(ended.code if isinstance(ended.code, int) else 1) from None
    if folder.records():
        write_tables(folder)
        make_console().print(f"written to {folder.path}/")
