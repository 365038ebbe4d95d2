import pytest

from ulskip_cli.cli.train import next_config
from ulskip_cli.core.command_line import overrides_of
from ulskip_cli.core.config import compose_training


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train.ratios=[1,2]"], ["task=wmt", "model.path=out"]),
        (
            ["model=smollm2-135m", "task=cnn_dm", "limit=8", "train.ratios=[3]"],
            ["task=cnn_dm", "model.path=out", "limit=8", "ratio=3"],
        ),
        (
            ["train=adapter", "strategy=top_skip", "train.ratios=[2]"],
            [
                *["model=tiny", "task=wmt", "strategy=top_skip", "correction=adapter"],
                "correction.path=[out]",
            ],
        ),
    ],
    ids=str,
)
def test_the_command_after_a_training_names_its_model_and_task(given, expected):
    training = compose_training([*given, "output=out"])
    assert overrides_of(next_config(training), "run") == expected
