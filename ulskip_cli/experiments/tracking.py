"""Log a finished point as a run of the experiment tracker that `tracker=` names."""

from pathlib import Path
from typing import Any

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.tracking import TrackedRun, flatten
from ulskip_cli.experiments.record import Record

_SETTINGS = ("environment", "trained_for", "calibration")  # dicts of the row without measurements
_LEFT_OUT = ("config", "strategy_options", "pairs")  # the raw samples of `pairs` stay in the row


def log_record(config: Config, record: Record, folder: Path) -> None:
    """Log a finished record to the tracker; failed and inapplicable points have no measurements and
    are not logged.

    Configuration, texts and lists are the run's parameters, and all other numbers of the row are
    its metrics.
    """
    if config.tracker == "none":
        return
    parameters, metrics = split_row(config, record)
    run = TrackedRun(config, run_name(record), folder)
    run.start(parameters)
    run.log(metrics)
    run.finish()


def run_name(record: Record) -> str:
    """Return strategy, ratio and identifier, e.g. `unified-2x-87da07ed0966`."""
    ratio = record.target_speedup
    return "-".join([record.strategy, *([f"{ratio:g}x"] if ratio else []), record.id])


def split_row(config: Config, record: Record) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the parameters and the metrics of a record, with dotted keys."""
    row = {key: value for key, value in record.to_row().items() if key not in _LEFT_OUT}
    parameters = dict(
        flatten({**config.resolved(), **{key: row.pop(key) for key in _SETTINGS if key in row}})
    )
    metrics = {}
    for key, value in flatten(row):
        if isinstance(value, bool | str):
            parameters[key] = value
        elif key not in parameters:
            metrics[key] = value
    return parameters, metrics
