"""Log a training run to the experiment tracker that `tracker=` names."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ulskip_cli.core.config import recorded_config
from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.tracking import TrackedRun, flatten


class TrackerCallback(TrainerCallback):  # type: ignore[misc]
    """A callback that logs losses and validations by step. A resumed training continues its earlier run."""

    def __init__(self, config: TrainingConfig, identity: str) -> None:
        output = Path(config.output)
        self.run = TrackedRun(config, f"{output.name}-{identity}", output)
        self._parameters, self._tracker = dict(flatten(recorded_config(config))), config.tracker

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open a new tracker run, or continue the tracker run of the resumed checkpoint."""
        if not state.is_world_process_zero:
            return
        file = Path(args.output_dir) / "tracked_run.json"
        begun = json.loads(file.read_text("utf-8")) if state.global_step and file.is_file() else {}
        self.run.start(self._parameters, begun.get(self._tracker))
        if self.run.id is not None:
            write_atomic(file, json.dumps({self._tracker: self.run.id}))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log the numbers that Trainer reports at this step."""
        if state.is_world_process_zero:
            self.run.log(
                {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}, state.global_step
            )
