from pathlib import Path

from ulskip_cli.cli.show import training_lines


def test_a_training_ends_with_the_command_that_runs_it():
    record = {"steps": 9, "strategy": "unified", "examples": 100, "left_out": 2}
    record |= {"seconds": 12.4, "train_loss": None, "resumed": False, "learning_curve": []}
    record |= {"config": {"train": {"method": "full"}}, "ratios": []}
    lines = training_lines(record, Path("a b;c"))
    assert "train.max_length" in lines[1]
    assert lines[-1].endswith("ulskip run 'model.path=a b;c'")
