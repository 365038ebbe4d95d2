"""The command `ulskip tune`."""

from ulskip_cli.cli.run import show_outcome
from ulskip_cli.cli.shared import (
    ConfigDir,
    Json,
    Overrides,
    PrintConfig,
    make_console,
    print_json,
    print_yaml,
)


def tune(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    print_config: PrintConfig = False,
) -> None:
    """Find what to use for speedup=1.5, or for quality=0.95 of the full model's score: look-ups or
    another engine with all layers, or the best layers and patches.

    After an interruption, the same command continues.
    """
    from ulskip_cli.core.config import compose_tuning

    chosen = compose_tuning(overrides)
    if print_config:
        print_yaml(chosen)
        return
    from ulskip_cli.tuning.request import resolve_tuning

    request = resolve_tuning(chosen)
    from ulskip_cli.cli.progress_bars import SweepDisplay
    from ulskip_cli.core.command_line import command_line
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.experiments.sweep.jobs import SweepOutcome
    from ulskip_cli.tuning.search import Tuning

    result = Tuning(request, SweepDisplay).run()
    if as_json:
        print_json(result.as_json())
        return
    tried = {record.id: record for record in result.tried}
    outcome = SweepOutcome(len(tried), tried)
    show_outcome(outcome, ResultsFolder.of(chosen), as_json=False, lead=result.verdict)
    make_console().print(f"command: {command_line(result.use, 'run')}")
