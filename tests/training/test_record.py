import json
from importlib import resources

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import parse
from ulskip_cli.training.record import TrainedStage, TrainingRecord

BUNDLED = json.loads(
    (resources.files("ulskip_cli") / "assets" / "tiny" / "training.json").read_text("utf-8")
)
VALUES = {
    **BUNDLED,
    "later_stages": {"2": [{"first_step": 3, "kept_layers": [0, 11]}]},
    "exits": [2, 4, 6],
}


def test_a_stored_record_is_read_as_it_was_written():
    record = parse(TrainingRecord, VALUES)
    assert record.later_stages == {"2": (TrainedStage(first_step=3, kept_layers=(0, 11)),)}
    assert record.kept_layers["2"] == (0, 2, 4, 7, 9, 11)
    assert record.plain() == VALUES
    assert parse(TrainingRecord, json.loads(json.dumps(record.plain()))) == record


def test_a_value_that_does_not_fit_is_named_with_its_file(tmp_path):
    with pytest.raises(UsageError, match=rf"steps in {tmp_path}"):
        parse(TrainingRecord, {**VALUES, "steps": "many"}, file=tmp_path)
