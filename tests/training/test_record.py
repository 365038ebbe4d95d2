import json
from importlib import resources
from pathlib import Path

import pytest
from ulskip_cli.core.typed_json import parse

from ulskip_cli.core.schedule import Stage
from ulskip_cli.training.record import TrainingRecord

EARLIER = json.loads((resources.files("ulskip_cli") / "assets" / "tiny" / "training.json").read_text("utf-8"))


def test_a_record_of_an_earlier_version_is_read_and_written_unchanged():
    record = parse(EARLIER, TrainingRecord, Path("training.json"))
    assert (record.later_stages, record.exits) == (None, None)
    assert record.kept_layers["2"] == (0, 2, 4, 7, 9, 11)
    assert record.learning_curve[-1].validation_loss["6"] == EARLIER["learning_curve"][-1]["validation_loss"]["6"]
    assert json.dumps(record.to_json()) == json.dumps(EARLIER)  # the order of keys included


@pytest.mark.parametrize("exits", [[], [2, 4, 6]])
def test_stages_and_exits_survive(exits):
    later = {"2": [{"first_step": 3, "kept_layers": [0, 11]}]}
    values = {**EARLIER, "later_stages": later, "exits": exits}
    record = parse(values, TrainingRecord, Path("training.json"))
    assert record.later_stages == {"2": (Stage(3, (0, 11)),)}
    assert record.to_json() == values


def test_the_shortest_records_lack_the_last_training_loss():
    values = {key: value for key, value in EARLIER.items() if key not in ("train_loss", "data")}
    record = parse(values, TrainingRecord, Path("training.json"))
    assert (record.train_loss, record.data) == (None, None)
