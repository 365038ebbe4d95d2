from pathlib import Path

from ulskip_cli.cli.show import training_lines


def test_a_training_in_a_few_lines():
    curve = [
        {"step": 1, "validation_loss": {"1x": 3.0}},
        {"step": 9, "validation_loss": {"1x": 1.5, "2x": 1.75}},
    ]
    record = {
        "steps": 9,
        "strategy": "unified",
        "examples": 100,
        "left_out": 2,
        "seconds": 12.4,
        "train_loss": 2.5,
        "resumed": False,
        "learning_curve": curve,
    }
    lines = training_lines(record, Path("runs/x"))
    assert lines[0] == "9 steps of unified on 100 examples, 12 s"
    assert lines[1] == "training loss of the last steps: 2.500"
    assert lines[2].startswith("2 examples") and "train.max_length" in lines[2]
    assert lines[3] == "validation loss: 1.500 at 1x, 1.750 at 2x"
    assert lines[4].endswith("ulskip run model.path=runs/x")
    assert training_lines(record, Path("a b;c"))[-1].endswith("ulskip run 'model.path=a b;c'")
    assert (
        len(
            training_lines(
                {**record, "left_out": 0, "train_loss": None, "learning_curve": []}, Path("x")
            )
        )
        == 2
    )
