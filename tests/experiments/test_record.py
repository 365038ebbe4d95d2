import json
import math
import types
import typing
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments import record as module
from ulskip_cli.experiments.record import RENAMED_KEYS, STATUSES, RunRecord, is_done, upgrade_row
from ulskip_cli.experiments.record_sections import QualityScores
from ulskip_cli.tasks.metrics import metric_keys

RESULTS = Path(__file__).parents[2] / "results"
SECTIONS = {
    one.name: kind
    for one in fields(RunRecord)
    for kind in vars(module).values()
    if isinstance(kind, type) and one.type in (kind.__name__, f"{kind.__name__} | None", kind, kind | None)
    if hasattr(kind, "__dataclass_fields__")
}
KNOWN = {key for kind in SECTIONS.values() for key in typing.get_type_hints(kind)} | {one.name for one in fields(RunRecord)}

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**40), 2**40)
texts = st.text(max_size=8)
names = st.from_regex(r"[a-z0-9][a-z0-9 .-]{0,8}", fullmatch=True)
new_names = texts.filter(lambda key: key not in {*KNOWN, *RENAMED_KEYS, *metric_keys()})
jsons = st.recursive(st.none() | st.booleans() | numbers | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3)


def values(hint):
    """Values of a field with this annotation."""
    if hint is typing.Any:
        return jsons
    if isinstance(hint, types.UnionType):
        return st.one_of([values(part) for part in typing.get_args(hint)])
    plain, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if plain is dict:
        return st.dictionaries(new_names, values(arguments[1]), max_size=2)
    if plain is list:
        return st.lists(values(arguments[0]), max_size=2)
    return {str: texts, bool: st.booleans(), int: st.integers(), float: numbers, types.NoneType: st.none()}[plain]


def sections(kind):
    """Instances of one section of a record."""
    hints = typing.get_type_hints(kind)
    chosen = {key: values(hint) for key, hint in hints.items()}
    if kind is QualityScores:
        chosen["scores"] = st.dictionaries(st.sampled_from(metric_keys()), numbers, max_size=3)
    if kind is SECTIONS["identity"]:
        chosen |= {"id": names, "baseline_id": st.none() | names}
    return st.builds(kind, **chosen)


records = st.builds(
    RunRecord,
    **{name: sections(kind) if name == "identity" else st.none() | sections(kind) for name, kind in SECTIONS.items()},
    status=st.sampled_from(STATUSES),
    reason=st.none() | texts,
    log=st.none() | texts,
    warnings=st.lists(texts, max_size=2).map(tuple),
    wall_seconds=st.none() | numbers,
    row_version=st.integers(1, 9),
    other=st.dictionaries(new_names, jsons, max_size=2),
)


def test_every_section_is_tried():
    assert set(SECTIONS) == {
        "identity", "schedule", "quality", "throughput", "timing", "benchmark", "lm_eval", "provenance",
    }  # fmt: skip


@given(records)
def test_a_record_survives_its_row(record):
    row = json.loads(json.dumps(record.to_row()))
    assert RunRecord.from_row(row) == record
    assert RunRecord.from_row(row).to_row() == record.to_row()


def renamed(row):
    """A row under the key names of this version."""
    return {RENAMED_KEYS.get(key, key): value for key, value in row.items()}


FILES = sorted([*RESULTS.glob("*/runs.jsonl"), *RESULTS.glob("*/*/runs.jsonl")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.parent.relative_to(RESULTS)))
def test_committed_rows_are_read_and_written_back(file):
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        written = RunRecord.from_row(row).to_row()
        expected = renamed({key: renamed(value) if key == "full" else value for key, value in row.items()})
        assert {key: written[key] for key in expected} == expected
        added = {key: value for key, value in written.items() if key not in expected}
        assert added.pop("status", "done") == "done"
        assert not any(added.values()), "a key that was never measured has no value"


def test_rows_are_committed():
    assert len(FILES) >= 10


def test_the_old_names_of_keys_are_read_in_both_sides_of_a_benchmark():
    old = {"id": "a", "full": {"product": "torch", "account": {"step_seconds": 1.0}}, "account": {"step_seconds": 0.5}}
    record = RunRecord.from_row({**old, "ceilings": {"bytes_per_second": 1.0}, "sources_cut": 3, "head_share": 0.25})
    assert record.benchmark.full == {"linear_backend": "torch", "step_time_breakdown": {"step_seconds": 1.0}}
    assert record.benchmark.step_time_breakdown == {"step_seconds": 0.5}
    assert record.benchmark.machine_limits == {"bytes_per_second": 1.0}
    assert (record.quality.num_truncated_sources, record.throughput.exit_check_fraction) == (3, 0.25)
    assert not RENAMED_KEYS.keys() & record.to_row().keys()
    assert upgrade_row(record.to_row()) == record.to_row()


BAD = [
    ({}, "id"),
    ({"strategy": "unified", "bleu": 1.0}, "id"),
    ({"id": ""}, "id"),
    ({"id": None}, "id"),
    ({"id": 7}, "id"),
    ({"id": "../../secret"}, "id"),
    ({"id": "/secret"}, "id"),
    ({"id": ".locks"}, "id"),
    ({"id": "a\u001b[31m"}, "id"),
    ({"id": "a", "baseline_id": "../a"}, "baseline_id"),
    ({"id": "a", "status": "finished"}, "status"),
    ({"id": "a", "status": 1}, "status"),
    ({"id": "a", "kept_layers": "0, 5"}, "kept_layers"),
    ({"id": "a", "bleu": "high"}, "bleu"),
    ({"id": "a", "batch_size": True}, "batch_size"),
    ({"id": "a", "batch_size": 1.5}, "batch_size"),
    ({"id": "a", "environment": []}, "environment"),
    ({"id": "a", "warnings": "one"}, "warnings"),
    ({"id": "a", "point_seconds": "4"}, "wall_seconds"),
]


@pytest.mark.parametrize(("row", "key"), BAD, ids=str)
def test_a_row_that_cannot_be_read_is_refused_by_the_name_of_its_key(row, key):
    with pytest.raises(UsageError, match=rf"\b{key}\b"):
        RunRecord.from_row(row)


def test_unknown_keys_survive():
    row = {"id": "a", "strategy": "unified", "mine": {"deep": [1, None]}, "profile": None}
    record = RunRecord.from_row(row)
    assert record.other == {"mine": {"deep": [1, None]}, "profile": None}
    written = record.to_row()
    assert {key: written[key] for key in row} == row


def test_the_oldest_rows_have_no_status_and_are_finished():
    assert is_done({"id": "a"}) and RunRecord.from_row({"id": "a"}).is_done
    assert not RunRecord.from_row({"id": "a", "status": "failed"}).is_done


def test_a_point_without_speed_or_quality_has_none_of_their_keys():
    identity = module.RunIdentity.of(compose([]), "0" * 12)
    row = RunRecord(identity, "failed", "no memory").to_row()
    assert (row["status"], row["reason"], row["strategy"]) == ("failed", "no memory", "unified")
    assert not {"bleu", "decode_loss", "measured_speedup", "environment"} & row.keys()


def test_a_failed_row_lacks_the_settings_that_are_unknown():
    known = {"id": "c", "strategy": "unified", "model": "m", "task": "wmt"}
    failed, finished = (RunRecord.from_row({**known, "status": status}).to_row() for status in ("failed", "done"))
    assert not {"dataset", "chat"} & failed.keys()
    assert (finished["dataset"], finished["chat"]) == (None, None)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_values_survive_a_row(value):
    record = RunRecord.from_row(json.loads(json.dumps({"id": "a", "decode_loss": value})))
    assert record.quality.decode_loss == value
