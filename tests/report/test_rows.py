from pathlib import Path

import pytest
from pydantic import Field
from report_rows import not_applicable, small_sweep, sweep_row, write_folder

from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import option
from ulskip_cli.experiments.record import FAILED, Point, Record
from ulskip_cli.report.rows import done, find_folders, grouped, read_records, reasons, varying
from ulskip_cli.strategies.static import Unified

SHARED = "m · wmt · de-en · greedy"


def test_folders_are_found_by_their_rows(tmp_path):
    one, two = (write_folder(tmp_path / name, small_sweep()) for name in ("one", "two"))
    assert find_folders([], tmp_path) == find_folders([tmp_path], tmp_path) == [one, two]
    assert find_folders([two / "runs.jsonl", two], tmp_path) == [two]


def test_what_has_no_rows_is_refused_with_what_has(tmp_path):
    write_folder(tmp_path / "one", small_sweep())
    with pytest.raises(UsageError, match=rf"'nowhere'.*{tmp_path / 'one'}"):
        find_folders([Path("nowhere")], tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "runs.jsonl").write_text("{broken\n")
    with pytest.raises(UsageError, match="empty"):
        read_records([tmp_path / "empty"])


def test_lines_that_are_no_rows_are_left_out_with_file_and_line(tmp_path, capsys):
    path = write_folder(tmp_path / "x", small_sweep())
    with (path / "runs.jsonl").open("a") as stream:
        stream.write('{"id": "alone"}\nrubbish\n')
    records = read_records([path])
    assert len(records) == len(small_sweep()) and {record.folder for record in records} == {
        str(path)
    }
    err = capsys.readouterr().err
    assert all(f"{path / 'runs.jsonl'}, line {len(records) + i}: " in err for i in (1, 2))


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
        ({"seed": 2}, "seed 2"),
        ({"model": "n"}, ""),
        ({"num_fewshot": 3}, "fewshot 3"),
        (
            {"engine": "llama_cpp", "engine_weights": "q4_0"},
            "engine llama_cpp · engine weights q4_0",
        ),
        ({"config": {"ratio": 2.0, "offset": 100}}, "offset 100"),
        ({"config": {"ratio": 2.0, "speed": {"pairs": 3}}}, "speed pairs 3"),
        ({"config": {"ratio": 2.0, "of_tomorrow": 4}}, "of tomorrow 4"),
        ({"config": {"ratio": 2.0, "engine": {"threads": 4}}}, "engine threads 4"),
    ],
    ids=str,
)
def test_any_setting_separates_records_and_is_named(change, label):
    plain = sweep_row(engine="torch")
    groups = grouped([plain, sweep_row(**{"engine": "torch", "id": "other", **change})])
    assert [len(group.records) for group in groups] == [1, 1]
    assert groups[1].label.endswith(label) and groups[0].label != groups[1].label


class Spaced(Unified):
    """A strategy of a user with an option of its own."""

    jitter: int = option(0, "an option")


class ConfigOfTomorrow(Config):
    """A configuration with a new setting."""

    pause: float = option(0.0, "a new setting")
    tracked: int = Field(0, json_schema_extra={"ulskip": {"identity": False}})


def recorded(**changes):
    """The record of a configuration with a new setting and a user's own strategy."""
    config = compose(["model=tiny"])
    strategy = Spaced(name="unified", jitter=changes.pop("jitter", 0))
    config = ConfigOfTomorrow.model_construct(
        **{**dict(config), "strategy": strategy, "pause": 0.0, **changes}
    )
    point = Point.of(config, config.identity)
    return sweep_row(id=point.id, config=point.config, strategy_options=point.strategy_options)


def test_a_setting_added_tomorrow_and_an_option_of_a_users_strategy_never_share_a_line():
    records = [recorded(), recorded(pause=1.5), recorded(jitter=1), recorded(jitter=2)]
    assert len({record.id for record in records}) == 4
    groups = grouped(records)
    assert [len(group.records) for group in groups] == [3, 1]
    assert groups[1].label.endswith("pause 1.5")
    lines = [point for group in groups for point in group.points().values()]
    assert [len(line) for line in lines] == [1] * 4
    assert {group.approach(record) for group in groups for record in group.records} == {
        "unified",
        "unified 1",
        "unified 2",
    }
    assert varying([recorded(), recorded(pause=1.5)]) == ["pause"]


def test_timed_rows_that_differ_in_an_option_of_speed_are_apart_also_without_a_baseline():
    rows = [
        sweep_row(id=str(tokens), measured_speedup=None, config={"speed": {"new_tokens": tokens}})
        for tokens in (8, 16)
    ]
    assert [len(group.records) for group in grouped(rows)] == [1, 1]


def test_options_of_different_choices_are_no_difference():
    short = sweep_row(config={"decoding": {"max_new_tokens": 4}})
    assert "decoding.max_new_tokens" not in varying([short, sweep_row(decoding="beam")])
    assert varying([short, sweep_row(config={"decoding": {"max_new_tokens": 24}})]) == [
        "decoding.max_new_tokens"
    ]


def test_settings_that_a_record_did_not_use_agree_with_all():
    config = {
        "ratio": 2.0,
        "speed": {"pairs": 9},
        "baseline_engine": "torch",
        "calibration": {"examples": 3},
    }
    records = [
        sweep_row(engine="torch", config=config, calibration={"id": "a"}),
        sweep_row("full", engine="torch", measured_speedup=None, pairs=None, config={"ratio": 1.0}),
        sweep_row("early_exit", engine="early_exit", config=config, calibration={"id": "b"}),
    ]
    assert [len(group.records) for group in grouped(records)] == [3]


def test_a_failed_record_joins_the_group_of_its_sweep():
    failed = Record.joined(
        Point.of(compose(["model=tiny"]), "x"), status=FAILED, reason="out of memory"
    )
    names = {
        "model": "m",
        "task": "wmt",
        "decoding": "greedy",
        "config": {"ratio": 2.0},
        "folder": "results/x",
    }
    (group,) = grouped(
        [
            *(row.replace(chat=False, draft_tokens=0) for row in small_sweep()),
            failed.replace(**names, dataset=None),
        ]
    )
    assert not group.records[-1].is_done


def patched(kind, **more):
    return sweep_row(id=kind, correction={"name": "patch", "kind": kind}, **more)


def adapted(folder, target=2.0, **more):
    config = {"ratio": target, "correction": {"name": "adapter", "path": [folder]}}
    return sweep_row(
        id=folder.replace("/", "-"),
        target=target,
        correction={"name": "adapter", "path": folder},
        config=config,
        **more,
    )


def test_units_patches_and_adapters_are_lines_of_their_own():
    units = [sweep_row(id=unit, strategy_options={"unit": unit}) for unit in ("attention", "mlp")]
    corrected = [patched("full"), patched("folded"), adapted("a/one")]
    (group,) = grouped([sweep_row("full"), sweep_row(), *units, *corrected])
    names = ("full patch", "folded patch", "adapter")
    expected = {
        "unified",
        "unified attention",
        "unified mlp",
        *(f"unified + {name}" for name in names),
    }
    assert {approach for target, approach in group.points() if target == 2.0} == expected


def test_two_adapters_of_a_point_are_named():
    (group,) = grouped([adapted("a/two"), adapted("a/three", target=3.0)])
    assert {approach for _, approach in group.points()} == {"unified + adapter"}
    (group,) = grouped([sweep_row(), adapted("a/one"), adapted("b/other")])
    assert {approach for _, approach in group.points()} == {
        "unified",
        "unified + adapter one",
        "unified + adapter other",
    }
