import pytest
from report_rows import bench_row, configured, sweep_row

from ulskip_cli.core.config import compose
from ulskip_cli.experiments.grid import grid_configs
from ulskip_cli.experiments.ledger import make_jobs
from ulskip_cli.experiments.record import DETECTED, FAILED, Outcome, Record, Settings
from ulskip_cli.experiments.settings import all_settings, differences, settings


def test_a_setting_is_named_if_rows_that_are_equal_before_it_differ_in_it():
    rows = [
        {"model": "a", "path": "x", "seed": 1, "strategy.spacing": 1},
        {"model": "b", "path": "y", "seed": 1},
        {"model": "b", "path": "y", "seed": 2, "strategy.spacing": 2},
        {"ratio": 2},
    ]
    assert differences(rows) == ["model", "seed"]
    assert differences(rows, already_named=["path", "seed"]) == []
    assert differences(rows, except_sections=["model"], always=["strategy.spacing"]) == [
        *("path", "seed", "strategy.spacing")
    ]


def test_a_setting_that_a_row_lacks_agrees_with_every_value():
    assert differences([{"seed": 1}, {"ratio": 2}, {"seed": 1, "ratio": 2}]) == []


@pytest.mark.parametrize(
    ("overrides", "command", "used", "unused"),
    [
        ([], "run", "ratio task.name speed.new_tokens", "calibration.examples name"),
        ([], "bench", "ratio speed.new_tokens", "task.name limit max_new_tokens"),
        ([], "lm-eval", "ratio", "task.name speed.new_tokens engine"),
        (["engine=torch"], "run", "engine", "engine.name"),
        (["strategy=full"], "run", "strategy.name", "ratio prompt_layers"),
        (["speed.enabled=false"], "run", "task.name", "speed.new_tokens speed.enabled"),
        (["correction=patch"], "run", "calibration.examples", "correction.path"),
    ],
)
def test_the_settings_of_a_configuration_are_those_that_a_command_uses(
    overrides, command, used, unused
):
    found = settings(Record.joined(Settings.of(compose(overrides), "x", command))).keys()
    assert {*used.split()} <= found and not {*unused.split()} & found


def test_what_a_failed_run_did_not_detect_agrees_with_all():
    outcome = Outcome(status=FAILED, reason="no memory")
    failed = Record.joined(Settings.of(compose(["engine=torch"]), "x"), outcome)
    assert settings(failed).keys() & DETECTED == {"engine"}  # which it was asked for
    assert {*DETECTED} <= settings(failed.replace(status="done")).keys()


@pytest.mark.parametrize(
    ("engine", "strategy", "config"),
    [
        ("speculative", "unified", {"decoding": {"draft_tokens": 2}}),
        ("early_exit", "early_exit", {}),
    ],
)
def test_an_engine_that_follows_from_the_strategy_is_no_setting(engine, strategy, config):
    assert "engine" not in settings(sweep_row(strategy, engine=engine, config=config))
    assert settings(sweep_row(engine="torch"))["engine"] == "torch"


def test_a_key_of_a_later_version_and_an_option_of_a_choice_are_none_in_rows_that_lack_them():
    later = configured(sweep_row(), of_tomorrow=4, speed={"of_tomorrow": 5})
    mine = configured(sweep_row(), strategy={"gain": 2}, speed={"of_tomorrow": 5})
    rows = all_settings([sweep_row(), later, mine, sweep_row("full"), bench_row()])
    assert [row["of_tomorrow"] for row in rows] == [None, 4, None, None, None]
    assert [row["speed.of_tomorrow"] for row in rows] == [None, 5, 5, None, None]
    assert [row["strategy.gain"] for row in rows] == [None, None, 2, None, None]
    assert {*differences(rows[:3])} == {"of_tomorrow", "speed.of_tomorrow"}
    assert differences(rows[1:3], already_named=["of_tomorrow"]) == []


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        (["ratio=2", "ratio=3"], ["unified ratio 2", "unified ratio 3"]),
        (
            ["batch_size=1", "batch_size=8"],
            ["unified ratio 2 batch size 1", "unified ratio 2 batch size 8"],
        ),
        # nothing that follows from the model is named
        (
            ["model=tiny", "model=random answers=false"],
            ["unified ratio 2 model tiny", "unified ratio 2 model smollm2-135m"],
        ),
        (
            ["correction=patch", "correction=none"],
            ["unified + full patch ratio 2", "unified ratio 2"],
        ),
        (
            ["strategy=custom strategy.layers=[0,1,2,9]", "strategy=custom strategy.layers=[0,9]"],
            ["custom strategy layers 0-2, 9", "custom strategy layers 0, 9"],
        ),
    ],
    ids=str,
)
def test_points_are_labelled_by_what_tells_them_apart(points, labels):
    configs = [compose(["ratio=2", "baseline=false", *words.split()]) for words in points]
    assert [job.label for job in make_jobs(configs)] == labels


def test_a_point_that_cannot_run_does_not_change_the_labels_of_others():
    jobs = make_jobs(grid_configs(["experiment=reproduce"]))
    assert any(job.refusal for job in jobs)
    assert not any("dataset" in job.label for job in jobs)
