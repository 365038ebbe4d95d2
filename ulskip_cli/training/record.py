"""The record of a training run, which is stored as `training.json` beside the weights. Imports no
torch.
"""

from typing import Any

from ulskip_cli.core.options import Options

RECORD_FILE = "training.json"


class CurvePoint(Options):
    """The validation losses at one step of a training run."""

    step: int
    validation_loss: dict[
        str, float
    ]  # nats per token, by target ratio (`2x`) or by exit depth (`6`)


class TrainedStage(Options):
    """The layers of later decode steps."""

    first_step: int
    kept_layers: tuple[int, ...]


class TrainingRecord(Options):
    """The settings, data and results of a training run."""

    strategy: str
    ratios: tuple[float, ...]
    kept_layers: dict[str, tuple[int, ...]]  # the layers of the first decode steps, by ratio
    later_stages: dict[str, tuple[TrainedStage, ...]]  # by ratio
    kept_counts: tuple[int, ...]  # all that were trained, descending
    exits: tuple[int, ...] = ()
    prompt_layers: str
    steps: int
    epochs: float
    examples: int
    left_out: int  # examples longer than `train.max_length`
    validation_examples: int
    data_sha256: str
    seed: int
    train_loss: float | None = None  # the last logged one
    learning_curve: tuple[CurvePoint, ...]
    based_on: (
        dict[str, Any] | None
    )  # record of the training that the initial weights come from, shortened
    config: dict[str, Any]
    environment: dict[str, Any]
    identity: str  # a hash of everything that decides the weights
    seconds: float  # wall time since the training was started or resumed
    resumed: bool
    data: dict[str, Any] | None = (
        None  # provenance of the texts, which `recipes/tiny/embed.py` adds
    )
