import pytest

from ulskip_cli.cli.models import next_config
from ulskip_cli.core.command_line import overrides_of
from ulskip_cli.core.config import compose_training

FILES = ["task=wmt", "task.dataset=files", "task.source_file=f", "task.reference_file=f"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train.ratios=[1,2]"], ["task=wmt", "model.path=out", "task.dataset=held_out"]),
        (
            ["model=smollm2-135m", "task=cnn_dm", "limit=8", "train.ratios=[3]"],
            ["task=cnn_dm", "model.path=out", "task.dataset=held_out", "limit=8", "ratio=3"],
        ),
        (
            [*FILES, "limit=8", "offset=1"],
            ["task=wmt", "model.path=out", *FILES[1:], "offset=9", "limit=8"],
        ),
        (
            [*FILES, "train.validation={source_file: v, limit: 3}"],
            ["task=wmt", "model.path=out", *FILES[1:2], "task.source_file=v", FILES[3], "limit=3"],
        ),
        (
            ["train=adapter", "strategy=top_skip", "train.ratios=[2]"],
            [
                *["model=tiny", "task=wmt", "strategy=top_skip", "correction=adapter"],
                *["task.dataset=held_out", "correction.path=[out]"],
            ],
        ),
    ],
    ids=str,
)
def test_the_command_after_a_training_evaluates_examples_that_were_not_trained_on(
    monkeypatch, tmp_path, given, expected
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_text("text\n" * 20)
    training = compose_training([*given, "output=out"])
    assert overrides_of(next_config(training), "run") == expected


@pytest.mark.parametrize("trained", [[], ["offset=2", "limit=18"]], ids=str)
def test_a_training_on_all_examples_names_no_command(monkeypatch, tmp_path, trained):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_text("text\n" * 20)
    assert next_config(compose_training([*FILES, *trained])) is None
