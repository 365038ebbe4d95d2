"""The command `ulskip tune`."""

from pathlib import Path
from typing import Annotated

import typer

from ulskip_cli.cli.shared import (
    PATH,
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
    to: Annotated[
        Path | None,
        typer.Option(**PATH, help="Folder into which the result is exported.", show_default=False),
    ] = None,
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
    from ulskip_cli.cli.progress_bars import ProgressBars, SweepDisplay
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.export.run import check_target

    if to is not None:
        check_target(to, is_folder=True)
    folder = ResultsFolder.of(request.config)
    folder.check_writable()
    from ulskip_cli.tuning.search import Tuning

    with ProgressBars() as bars:
        result = Tuning(request, bars, SweepDisplay).run()
    result.store()
    if as_json:
        if to is not None:
            result.export(to)
        print_json({**result.as_json(), "exported_to": str(to) if to else None})
        return
    console = make_console()
    for line in result.lines():  # before an export, which can fail
        console.print(line)
    for line in result.export(to) if to is not None else ():
        console.print(line)
