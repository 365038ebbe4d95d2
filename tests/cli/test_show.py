from pathlib import Path

import pytest

from ulskip_cli.cli.show import next_overrides


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("full", [], ["task=wmt", "model.path=out", "ratio=2"]),
        (
            "full",
            ["model=smollm2-135m", "task=cnn_dm", "limit=8"],
            ["model.path=out", "task=cnn_dm", "limit=8", "ratio=2"],
        ),
        (
            "adapter",
            ["strategy=top_skip"],
            ["model=tiny", "task=wmt", "strategy=top_skip", "ratio=2"],
        ),
    ],
)
def test_the_command_after_a_training_names_its_model_and_task(method, given, expected):
    names = {"model": {"name": "tiny"}, "task": {"name": "wmt"}}
    record = {"config": {**names, "train": {"method": method}}, "ratios": [1.0, 2.0]}
    found = next_overrides(record, Path("out"), given)
    correction = ["correction=adapter", "correction.path=out"] * (method == "adapter")
    assert found == [*expected, *correction]
