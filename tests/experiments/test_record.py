import json
import math
from pathlib import Path

import pytest
import torch
from report_rows import ENVIRONMENT, sweep_row

from ulskip_cli.core import environment
from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record import (
    FAILED,
    Outcome,
    Pairs,
    Quality,
    Record,
    Settings,
    Side,
    read,
)
from ulskip_cli.experiments.settings import settings

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("results/**/runs.jsonl"))
POINT = {"id": "a", "config": compose([]).recorded()}


def asked(*overrides):
    return Settings.of(compose(["model=tiny", *overrides]), "0" * 12)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_committed_rows_are_read_and_written_back(file):
    for line in file.read_text("utf-8").splitlines():
        record = read(line)
        assert record.to_row() == json.loads(line)
        assert read(json.dumps(record.to_row())) == record


def test_a_record_is_made_of_sections():
    point = asked("ratio=3")
    record = Record.joined(point, Quality(bleu=20.0, decode_loss=2.0), Outcome(wall_seconds=1.5))
    assert (record.scores, record.target_speedup, record.wall_seconds) == ({"bleu": 20.0}, 3.0, 1.5)
    record = record.replace(chrf=1.0, decode_loss=3.0)
    assert (record.scores, record.decode_loss) == ({"bleu": 20.0, "chrf": 1.0}, 3.0)
    row = record.to_row()
    assert "reason" not in row and row["config"]["ratio"] == row["target_speedup"] == 3.0
    assert read(json.dumps(row)) == record


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"decode_tokens_per_secnd": 1.0}, "decode_tokens_per_secnd"),
        ({"batch_size": 4}, "batch_size"),  # follows from the configuration
        ({"bleu": "high"}, "bleu"),
        ({"config": {**compose([]).recorded(), "batch_size": "eight"}}, "config"),
        ({"pairs": {"strategy": {"decode_secnds": [1.0]}}}, "pairs"),
        ({"agreement_low": 0.9, "agreement_high": 0.1}, "agreement_low <= its upper end"),
    ],
    ids=str,
)
def test_a_key_or_value_that_a_record_does_not_have_is_refused_when_it_is_made(changes, key):
    with pytest.raises((UsageError, ValueError), match=key):
        Record.joined(asked()).replace(**changes)


@pytest.mark.parametrize(
    "later", [{"of_tomorrow": [1]}, {"environment": {**ENVIRONMENT, "of_tomorrow": {"deep": 1}}}]
)
def test_measurements_of_a_later_version_are_left_out_when_a_row_is_read(later):
    row = {**sweep_row().to_row(), **later}
    record = read(json.dumps(row))
    assert record == sweep_row().replace(folder="")
    assert "of_tomorrow" not in json.dumps(record.to_row())


def test_the_settings_that_a_row_repeats_are_those_of_its_configuration():
    row = sweep_row().to_row()
    assert (row["strategy"], row["batch_size"]) == ("unified", 1)
    changed = {**row, "strategy": "top_skip", "batch_size": 7, "model": None}
    assert read(json.dumps(changed)) == read(json.dumps(row))


def test_a_failed_point_has_no_measurements_but_its_settings():
    failed = {"status": FAILED, "reason": "no memory"}
    record = Record.joined(asked("correction=patch"), Outcome(**failed))
    row = record.to_row()
    assert row.items() >= {**failed, "strategy": "unified"}.items()
    assert not {"dataset", "decode_loss", "measured_speedup", "environment"} & row.keys()
    assert record.label == "unified + full patch"
    found = settings(record)
    assert found["strategy.name"] == "unified" and found["calibration.examples"] == 64
    assert not {"dataset", "device", "engine"} & found.keys()
    assert record.uses("calibration.examples") and not record.uses("baseline_engine")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"id": None}, "expected a value for id, got none; repeat the run"),
        ({"id": "../../secret"}, "id"),
        ({"baseline_id": "../a"}, "baseline_id"),
        ({"config": None}, "config"),
        ({"config": [1]}, "config"),
        ({"config": {**POINT["config"], "batch_size": 1.5}}, r"config\.batch_size"),
        ({"status": "finished"}, "status"),
        ({"kept_layers": "0, 5"}, "kept_layers"),
        ({"bleu": "high"}, "bleu"),
        ({"bleu": math.nan}, "bleu"),
        ({"environment": {"threads": 2}}, "environment.ulskip"),
        ({"later_stages": [{"first_step": 0, "kept_layers": [0.5]}]}, "later_stages"),
        ({"pairs": {"full": {"decode_seconds": [1.0]}}}, "pairs.strategy"),
        ({"vs_baseline": {"bleu": {"full": 1.0}}}, "vs_baseline"),
        ({"exit_depths": {"one": 1}}, "exit_depths"),
        ({"measured_speedup": 2.0}, "measured_speedup_low"),
        ({"kept_layers": [0, 5], "num_layers": 5, "layer_ratio": 2.5}, "kept_layers"),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_read_is_refused_with_its_key(change, key):
    row = {name: value for name, value in {**POINT, **change}.items() if value is not None}
    with pytest.raises(UsageError, match=rf"\b{key}\b"):
        read(json.dumps(row))


@pytest.mark.parametrize("key", ["decoded_tokens", "first_token_seconds", "prefill_seconds"])
@pytest.mark.parametrize("count", [1, 3])
def test_sides_of_pairs_with_other_numbers_of_values_are_refused(key, count):
    side = {"decode_seconds": (1.0, 1.0), "decoded_tokens": (3, 3), key: (2,) * count}
    with pytest.raises(UsageError, match=f"expected 2 values of {key} in pairs, got {count}"):
        Pairs(strategy=Side(decode_seconds=(1.0, 1.0), decoded_tokens=(3, 3)), full=Side(**side))


@pytest.mark.parametrize("line", ["{", "[1]", '{"id": "\\ud800"}', b"\xff"])
def test_a_line_that_is_no_object_is_refused(line):
    with pytest.raises(UsageError, match="JSON object"):
        read(line)


def test_a_speedup_has_an_interval_with_enough_units():
    row = sweep_row()
    assert row.speedup[1:] == (1.78, 1.82)
    assert sweep_row(units=2).speedup[1:] == (None, None)
    assert sweep_row(measured_speedup=None).speedup is None


@pytest.mark.parametrize(("device", "here"), [("cuda", True), ("cuda:3", False), ("cpu", False)])
def test_a_row_belongs_to_this_machine_if_its_accelerator_is_here(monkeypatch, device, here):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    on_cpu = {**ENVIRONMENT, **environment.machine("cpu")}
    del on_cpu["platform"]
    on_gpu = sweep_row(device=device, environment={**on_cpu, "accelerator": "H100"})
    assert on_gpu.is_from_here("threads") is here and on_gpu.is_from_here(quick=True)
    assert sweep_row(environment=on_cpu).is_from_here()
    assert not sweep_row(environment={**on_cpu, "threads": 99}).is_from_here("threads")
    other, unknown = sweep_row(environment=ENVIRONMENT), sweep_row(environment=None)
    assert not any(row.is_from_here(quick=quick) for row in (other, unknown) for quick in (0, 1))
