import json
import math
import re
import types
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments import record as module
from ulskip_cli.experiments.record import STATUSES, RunRecord
from ulskip_cli.experiments.record_sections import QualityScores
from ulskip_cli.experiments.row_values import Bounds, NotEmpty, NumberedKeys, hints_of
from ulskip_cli.tasks.metrics import metric_keys

RESULTS = Path(__file__).parents[2] / "results"
SECTIONS = {
    one.name: kind
    for one in fields(RunRecord)
    for kind in vars(module).values()
    if isinstance(kind, type) and one.type in (kind.__name__, f"{kind.__name__} | None", kind, kind | None)
    if hasattr(kind, "__dataclass_fields__")
}
KNOWN = {key for kind in SECTIONS.values() for key in hints_of(kind)} | {one.name for one in fields(RunRecord)}

numbers = st.floats(-1e30, 1e30) | st.integers(-(2**40), 2**40)
texts = st.text(max_size=8)
names = st.from_regex(r"[a-z0-9][a-z0-9 .-]{0,8}", fullmatch=True)
new_names = texts.filter(lambda key: key not in {*KNOWN, *metric_keys()})
jsons = st.recursive(st.none() | st.booleans() | numbers | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3)


def values(hint):
    """Values of a field with this annotation, small enough for all bounds."""
    plain, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is typing.Any:
        return jsons
    if plain in (types.UnionType, typing.Union):
        return st.one_of([values(part) for part in arguments])
    if plain is typing.Annotated:
        return annotated(*arguments)
    if typing.is_typeddict(plain):
        return st.fixed_dictionaries({key: values(own) for key, own in hints_of(plain).items()})
    if plain is dict:
        return st.dictionaries(new_names, values(arguments[1]), max_size=2)
    if plain is list:
        return st.lists(values(arguments[0]), min_size=1, max_size=2)
    return {str: texts, bool: st.booleans(), int: numbers.filter(lambda n: isinstance(n, int)), float: numbers}.get(
        plain, st.none()
    )


def annotated(base, rule, *_):
    """Values of a type that a rule restricts."""
    if isinstance(rule, Bounds):
        low, high = max(rule.low, rule.above, -(2.0**40)), min(rule.high, 2.0**40)
        floats = st.floats(low, high).filter(lambda one: one in rule)
        return st.integers(math.ceil(low), math.floor(high)) if base is int else floats
    if isinstance(rule, NumberedKeys):
        return st.dictionaries(st.integers(0, 40).map(str), values(typing.get_args(base)[1]), max_size=2)
    return values(base if isinstance(rule, NotEmpty) else getattr(rule, "kind", rule))


def in_order(section):
    """A section whose intervals are ascending and whose layers exist."""
    held = {one.name: getattr(section, one.name) for one in fields(section)}
    for key in ("measured_speedup", "end_to_end_speedup"):
        if key in held:
            ends = sorted([held[f"{key}_low"] or 1.0, held[f"{key}_high"] or 1.0])
            held |= {f"{key}_low": ends[0], f"{key}_high": ends[1]}
    for one in held.get("vs_baseline", {}).values():
        one["delta_low"], one["delta_high"] = sorted([one["delta_low"], one["delta_high"]])
    if "kept_layers" in held:
        layers = [*(held["kept_layers"] or ()), *(layer for one in held["later_stages"] for layer in one["kept_layers"])]
        held |= {"num_layers": max([0, *layers]) + 1, "layer_ratio": held["layer_ratio"] or 1.0}
        assume(held["num_layers"] <= 10**5)
    return replace(section, **held)


def sections(kind):
    """Instances of one section of a record."""
    chosen = {key: values(hint) for key, hint in hints_of(kind).items()}
    if kind is QualityScores:
        chosen["scores"] = st.dictionaries(st.sampled_from(metric_keys()), numbers, max_size=3)
    if kind is SECTIONS["identity"]:
        chosen |= {"id": names, "baseline_id": st.none() | names}
    if kind is SECTIONS["schedule"]:
        chosen["kept_layers"] = st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=3)
        chosen["later_stages"] = st.lists(st.fixed_dictionaries({"first_step": st.integers(0, 9), "kept_layers": st.just([1])}))
    if kind is SECTIONS["benchmark"]:
        chosen["machine_limits"] = st.none()  # needs many other keys
    return st.builds(kind, **chosen).map(in_order)


records = st.builds(
    RunRecord,
    **{name: sections(kind) if name == "identity" else st.none() | sections(kind) for name, kind in SECTIONS.items()},
    status=st.sampled_from(STATUSES),
    reason=st.none() | texts,
    log=st.none() | texts,
    warnings=st.lists(texts, max_size=2).map(tuple),
    wall_seconds=st.none() | numbers,
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


FILES = sorted([*RESULTS.glob("*/runs.jsonl"), *RESULTS.glob("*/*/runs.jsonl")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.parent.relative_to(RESULTS)))
def test_committed_rows_are_read_and_written_back(file):
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        written = RunRecord.from_row(row).to_row()
        assert {key: written[key] for key in row} == row
        added = {key: value for key, value in written.items() if key not in row}
        assert not any(added.values()), "a key that was never measured has no value"


def test_rows_are_committed():
    assert len(FILES) >= 10


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
    ({"id": "a", "status": None}, "status"),
    ({"id": "a", "kept_layers": "0, 5"}, "kept_layers"),
    ({"id": "a", "bleu": "high"}, "bleu"),
    ({"id": "a", "batch_size": True}, "batch_size"),
    ({"id": "a", "batch_size": 1.5}, "batch_size"),
    ({"id": "a", "environment": []}, "environment"),
    ({"id": "a", "warnings": "one"}, "warnings"),
    ({"id": "a", "wall_seconds": "4"}, "wall_seconds"),
    ({"id": "a", "wall_seconds": math.nan}, "wall_seconds"),
    ({"id": "a", "wall_seconds": 10**400}, "wall_seconds"),
    ({"id": "a", "later_stages": [{"first_step": 0, "kept_layers": [0.5]}]}, "later_stages[0].kept_layers[0]"),
    ({"id": "a", "pairs": {"strategy": {"decode_seconds": []}}}, "pairs.strategy.decode_seconds"),
    ({"id": "a", "pairs": {"full": {"decode_seconds": [1.0]}}}, "pairs.strategy"),
    ({"id": "a", "vs_baseline": {"bleu": {"full": 1.0}}}, "vs_baseline.bleu.delta"),
    ({"id": "a", "exit_depths": {"one": 1}}, "exit_depths.one"),
    ({"id": "a", "config": {"task": []}}, "config.task"),
    ({"id": "a", "environment": {"threads": 2}}, "environment.ulskip"),
    ({"id": "a", "measured_speedup": 2.0}, "measured_speedup_low"),
    ({"id": "a", "measured_speedup": -2.0}, "measured_speedup"),
    ({"id": "a", "measured_speedup": 2.0, "measured_speedup_low": 3.0, "measured_speedup_high": 1.0}, "measured_speedup"),
    ({"id": "a", "kept_layers": [0, 5], "num_layers": 5, "layer_ratio": 2.5}, "kept_layers"),
    ({"id": "a", "machine_limits": {"bytes_per_second": 1.0}}, "model"),
]


@pytest.mark.parametrize(("row", "key"), BAD, ids=str)
def test_a_row_that_cannot_be_read_is_refused_by_the_name_of_its_key(row, key):
    with pytest.raises(UsageError, match=rf"\bkey {re.escape(key)} "):
        RunRecord.from_row({"status": "done", **row})


def test_unknown_keys_survive():
    row = {"id": "a", "status": "done", "strategy": "unified", "mine": {"deep": [1, None]}, "profile": None}
    record = RunRecord.from_row(row)
    assert record.other == {"mine": {"deep": [1, None]}, "profile": None}
    written = record.to_row()
    assert {key: written[key] for key in row} == row


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
    record = RunRecord.from_row(json.loads(json.dumps({"id": "a", "status": "done", "decode_loss": value})))
    assert record.quality.decode_loss == value
