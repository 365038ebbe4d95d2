from pathlib import Path

import pytest
from report_rows import (
    configured,
    not_applicable,
    small_sweep,
    sweep_row,
    timed_pairs,
    write_folder,
)

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record import FAILED, Outcome, Provenance, Record, Settings
from ulskip_cli.report.rows import done, find_folders, grouped, read_records, reasons, warnings

SHARED = "m · wmt · de-en · greedy"


def test_folders_are_found_by_their_rows(tmp_path):
    one, two = (write_folder(tmp_path / name, small_sweep()) for name in ("one", "two"))
    assert find_folders([tmp_path]) == [one, two]
    assert find_folders([two / "runs.jsonl", two]) == [two]


def test_what_has_no_rows_is_refused_with_what_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "results" / "one", small_sweep())
    with pytest.raises(UsageError, match=r"'nowhere'.*results/one"):
        find_folders([Path("nowhere")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "runs.jsonl").write_text("{broken\n")
    with pytest.raises(UsageError, match="empty"):
        read_records([tmp_path / "empty"])


def test_a_reason_is_told_once_and_many_are_cut():
    records = [not_applicable(batch=2), not_applicable(batch=8), sweep_row()]
    assert done(records) == records[2:]
    assert reasons(records) == ["N/A (early_exit): early_exit decodes one sequence at a time"]


def test_records_that_differ_in_strategy_target_and_batch_alone_are_one_group():
    records = small_sweep()
    (group,) = grouped(records)
    assert (group.label, group.records, group.batches) == (SHARED, records, [1, 8])


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"config": {"seed": 2}}, "seed 2"),
        ({"config": {"model": {"name": "n", "source": "bundled", "path": "n"}}}, ""),
        ({"num_fewshot": 3}, "fewshot 3"),
        (
            {"engine": "llama_cpp", "engine_weights": "q4_0"},
            "engine llama_cpp",
        ),  # tells the weights
        ({"config": {"speed": {"pairs": 3}}}, "speed pairs 3"),
        ({"config": {"of_tomorrow": 4}}, "of tomorrow 4"),
        ({"config": {"speed": {"of_tomorrow": 4}}}, "speed of tomorrow 4"),
        ({"config": {"engine": {"name": "auto", "threads": 4}}}, "engine threads 4"),
    ],
    ids=str,
)
def test_any_setting_separates_records_and_is_named(change, label):
    plain = sweep_row(engine="torch")
    groups = grouped([plain, sweep_row(**{"engine": "torch", "id": "other", **change})])
    assert [len(group.records) for group in groups] == [1, 1]
    assert groups[1].label.endswith(label) and groups[0].label != groups[1].label


def test_settings_that_a_record_did_not_use_agree_with_all():
    records = [
        sweep_row("search", engine="torch", config={"calibration": {"examples": 3}}),
        sweep_row("full", engine="torch"),
        sweep_row(engine="torch", config={"speed": {"enabled": False}}),
        sweep_row("early_exit", engine="early_exit", config={"calibration": {"examples": 3}}),
    ]
    assert [len(group.records) for group in grouped(records)] == [4]


def test_a_failed_record_joins_the_group_of_its_sweep():
    point = Settings.of(compose(["model=tiny"]), "x")
    failed = Record.joined(point, Outcome(status=FAILED, reason="out of memory"))
    failed = failed.replace(folder="results/x")
    config = {key: failed.config.non_defaults()[key] for key in ("model", "task", "decoding")}
    rows = [configured(row, **config).replace(chat=False) for row in small_sweep()]
    (group,) = grouped([*rows, failed])
    assert not group.records[-1].is_done


def patched(kind, **more):
    used = {"name": "patch", "kind": kind}
    return sweep_row(id=kind, correction=used, config={"correction": used}, **more)


def adapted(folder, target=2.0, **more):
    config = {"correction": {"name": "adapter", "path": [folder]}}
    used = {"correction": {"name": "adapter", "path": folder}, "config": config}
    return sweep_row(id=folder.replace("/", "-"), target=target, **used, **more)


def test_patches_and_adapters_are_lines_of_their_own():
    corrected = [patched("full"), patched("folded"), adapted("a/one")]
    (group,) = grouped([sweep_row("full"), sweep_row(), *corrected])
    expected = {"unified", "unified + full patch", "unified + folded patch", "unified + adapter"}
    assert {approach for target, approach in group.points() if target == 2.0} == expected


def test_two_adapters_of_a_point_are_named():
    (group,) = grouped([adapted("a/two"), adapted("a/three", target=3.0)])
    assert {approach for _, approach in group.points()} == {"unified + adapter"}
    (group,) = grouped([sweep_row(), adapted("a/one"), adapted("b/other")])
    expected = {"unified", "unified + adapter one", "unified + adapter other"}
    assert {approach for _, approach in group.points()} == expected


def test_benchmarks_of_two_tasks_are_one_group():
    configs = [compose([f"task={name}", "model=tiny"]) for name in ("wmt", "cnn_dm", "jsonl")]
    points = [Settings.of(config, str(i), "bench") for i, config in enumerate(configs)]
    records = [Record.joined(point, Provenance(device="cpu", engine="torch")) for point in points]
    (group,) = grouped(records)
    assert group.records == records and len({record.identity for record in records}) == 1
    assert len(grouped([Record.joined(Settings.of(config, "x")) for config in configs])) == 3


@pytest.mark.parametrize(("target", "told"), [(1.3, True), (3.0, False)])
def test_a_machine_on_which_the_full_model_is_faster_than_itself_is_told(target, told):
    pairs = timed_pairs([1.0, 1.3, 1.7], [1.0, 1.1, 1.0], decoded_tokens=31)
    full = sweep_row("full", pairs=pairs)
    asked = sweep_row(target=2.0, config={"ratio": target}, layer_ratio=target)
    found = [text for text in warnings([full, asked]) if "restless" in text]
    assert full.speedup == (1.0, None, None) and len(found) == told
    assert not told or f"to tell a speedup of {target}x" in found[0]
