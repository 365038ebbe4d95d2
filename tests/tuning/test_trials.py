import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tuning.trials import Trial


def test_a_trial_survives_its_log(tmp_path):
    trial = Trial(
        candidate="unified",
        kept_layers=(0, 3),
        loss=1.5,
        patch="0123456789ab",
        adapter=str(tmp_path / "key-adapter" / "one"),
    )
    assert Trial.from_step(trial.as_step(), tmp_path / "key.jsonl") == trial


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch", "../../private"),
        ("patch", 7),
        ("adapter", "/private"),
        ("kept_layers", "first"),
        ("loss", None),
    ],
)
def test_a_trial_that_names_another_folder_is_refused(tmp_path, key, value):
    step = {
        "candidate": "unified",
        "kept_layers": [0, 3],
        "loss": 1.5,
        "patch": None,
        "adapter": None,
    }
    with pytest.raises(UsageError, match=f"expected {key}"):
        Trial.from_step({**step, key: value}, tmp_path / "key.jsonl")
