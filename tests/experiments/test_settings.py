from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import bench_row, configured, sweep_row

from ulskip_cli.core.config import compose
from ulskip_cli.experiments.record import DETECTED, FAILED, Outcome, Record, Settings
from ulskip_cli.experiments.settings import (
    UNKNOWN,
    Key,
    all_settings,
    config_settings,
    differences,
    settings,
)

SECTIONS = ("strategy", "engine", "speed")
KEYS = [Key("strategy.name"), Key("engine.name"), Key("seed"), Key("device"), Key("dataset")]
KEYS += [Key("strategy.spacing", "unified"), Key("strategy.spacing", "custom")]
KEYS += [Key("speed.new_tokens"), Key("speed.prompt_tokens")]


def differ(rows, key):
    """Return True if some pair of rows has both a key, with different values."""
    pairs = combinations([row[key] for row in rows if key in row], 2)
    return any(one != other for one, other in pairs)


def tells(rows, told, key):
    """Return True if equal values of `told` mean equal values of a key in the rows that have both,
    and the reverse unless `told` is in the section of the key, and these rows have all its values.
    """
    both = [row for row in rows if told in row and key in row]
    if {row[key] for row in both} != {row[key] for row in rows if key in row}:
        return False
    for one, other in combinations(both, 2):
        same_told, same = one[told] == other[told], one[key] == other[key]
        if (same_told and not same) or (same and not same_told and told.part != key.part):
            return False
    return True


ROWS = st.lists(st.dictionaries(st.sampled_from(KEYS), st.sampled_from("abc")), max_size=5)


@given(rows=ROWS, but=st.sets(st.sampled_from(SECTIONS)))
def test_the_differences_are_keys_that_some_pair_of_rows_has_with_different_values(rows, but):
    found = differences(rows, but)
    differing = [key for key in KEYS if key.part not in but and differ(rows, key)]
    assert set(found) <= set(differing)
    for key in differing:  # each is there, or an earlier one tells the same
        before = found[: found.index(key)] if key in found else found
        told = [one for one in before if tells(rows, one, key)]
        assert (key in found) is (key.name in DETECTED or not told)


def test_a_key_that_no_row_has_beside_another_is_not_told_by_it():
    rows = [{Key("seed"): 1}, {Key("seed"): 2}, {Key("ratio"): 3}, {Key("ratio"): 4}]
    assert differences(rows) == [Key("seed"), Key("ratio")]


@pytest.mark.parametrize(
    ("overrides", "command", "used", "unused"),
    [
        ([], "run", "ratio task.name speed.new_tokens", "calibration.examples name"),
        ([], "bench", "ratio speed.new_tokens", "task.name limit max_new_tokens"),
        ([], "lm-eval", "ratio", "task.name speed.new_tokens engine.name"),
        (["strategy=full"], "run", "strategy.name", "ratio prompt_layers"),
        (["speed.enabled=false"], "run", "speed.enabled", "speed.new_tokens"),
        (["correction=patch"], "run", "calibration.examples", "correction.path"),
    ],
)
def test_the_settings_of_a_configuration_are_those_that_a_command_uses(
    overrides, command, used, unused
):
    found = {key.name for key in config_settings(compose(overrides), command)}
    assert {*used.split()} <= found and not {*unused.split()} & found


def test_the_same_option_of_two_strategies_is_two_keys():
    one, other = (settings(sweep_row(name)) for name in ("unified", "block_influence"))
    options = [{key for key in row if key.part == "strategy"} for row in (one, other)]
    assert options[0] & options[1] == {Key("strategy.name")}


def test_what_a_failed_run_did_not_detect_agrees_with_all():
    failed = Record.joined(
        Settings.of(compose([]), "x"), Outcome(status=FAILED, reason="no memory")
    )
    done = failed.replace(status="done")
    detected = {Key(name) for name in DETECTED}
    assert not detected & settings(failed).keys()
    assert detected <= settings(done).keys()
    assert Key("speed.enabled") not in settings(failed)


@pytest.mark.parametrize(
    ("engine", "strategy", "config"),
    [
        ("speculative", "unified", {"decoding": {"draft_tokens": 2}}),
        ("early_exit", "early_exit", {}),
    ],
)
def test_an_engine_that_follows_from_the_strategy_is_no_setting(engine, strategy, config):
    assert Key("engine") not in settings(sweep_row(strategy, engine=engine, config=config))
    assert settings(sweep_row(engine="torch"))[Key("engine")] == "torch"


def test_a_key_of_a_later_version_is_none_in_rows_that_lack_it():
    later = configured(sweep_row(), of_tomorrow=4, speed={"of_tomorrow": 5})
    mine = configured(sweep_row(), strategy={"gain": 2}, speed={"of_tomorrow": 5})
    rows = all_settings([sweep_row(), later, mine, sweep_row("full"), bench_row()])
    assert [row[Key("of_tomorrow", UNKNOWN)] for row in rows] == [None, 4, None, None, None]
    assert [row[Key("speed.of_tomorrow", UNKNOWN)] for row in rows] == [None, 5, 5, None, None]
    gains = [row.get(Key("strategy.gain", "unified"), "no key") for row in rows]
    assert gains == [None, None, 2, "no key", None]
    found = {key.name for key in differences(rows[:3])}
    assert found == {"of_tomorrow", "speed.of_tomorrow", "strategy.gain"}
