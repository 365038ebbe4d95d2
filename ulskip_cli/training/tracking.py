"""Arguments with which transformers logs a training to the experiment tracker of `tracker=`."""

import os
from pathlib import Path
from typing import Any

from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.tracking import PROJECT


def tracker_arguments(config: TrainingConfig, identity: str) -> dict[str, Any]:
    """Return arguments of Trainer, and set the environment variables that the tracker reads.

    Raises UsageError for options that transformers does not pass on.
    """
    output, tracker = Path(config.output).expanduser(), config.tracker
    options = {"project": PROJECT, "run_name": f"{output.name}-{identity}"}
    options |= config.tracker_options or {}
    for key in options:
        if key not in ("project", "run_name") and not key.startswith("trackio_"):
            raise UsageError(
                f"tracker_options.{key} is not supported by ulskip train, which logs through "
                f"transformers; use project, run_name, or environment variables of {tracker}"
            )
    project = options["project"]
    variables: dict[str, dict[str, Any]] = {
        "wandb": {
            "WANDB_PROJECT": project,
            "WANDB_DIR": output,  # holds the id of an interrupted run
            "WANDB_RESUME": "auto",
            "WANDB_SILENT": "true",  # it prints to standard output when Python exits
        },
        "mlflow": {"MLFLOW_EXPERIMENT_NAME": project},
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": output / "tensorboard" / project},
    }
    os.environ.update({key: str(value) for key, value in variables.get(tracker, {}).items()})
    return {"report_to": tracker, **options}
