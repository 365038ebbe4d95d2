"""The command `ulskip train`."""

import os

from ulskip_cli.cli.options import ConfigDir, Json, Overrides, PrintConfig
from ulskip_cli.cli.show import print_json, print_yaml, training_lines
from ulskip_cli.core.files import check_writable, user_path


def train(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    print_config: PrintConfig = False,
) -> None:
    """Fine-tune a model with layer skipping, e.g. train.ratios=[1,2] output=runs/mine.

    After an interruption, the same command continues from the last checkpoint.
    """
    from ulskip_cli.core import config
    from ulskip_cli.training.preflight import check_trainable

    chosen = config.compose_training(overrides)
    if print_config:
        print_yaml(chosen)
        return
    check_trainable(chosen)
    output = user_path(chosen.output, "output")
    check_writable(output, "output")
    from ulskip_cli.cli.progress_bars import ProgressBars

    first = os.environ.get("RANK", "0") == "0"  # one of torchrun's processes speaks for all
    with ProgressBars(enabled=first) as bars:
        from ulskip_cli.training.run import run_training

        record = run_training(chosen, bars).plain()
    if not first:
        return
    from ulskip_cli.report.plots import learning_curve

    learning_curve(record, output / "learning_curve")
    if as_json:
        print_json(record)
        return
    for line in training_lines(record, output, chosen):
        print(line)
