import json

import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.strategy import ScheduleRequest
from ulskip_cli.strategies.static import (
    BottomSkip,
    Custom,
    ScheduleFile,
    TopSkip,
    Unified,
    read_schedule,
)


@pytest.mark.parametrize(("strategy", "kept"), [(TopSkip(), (0, 1, 2)), (BottomSkip(), (3, 4, 5))])
def test_one_end_is_kept(strategy, kept):
    assert strategy.kept_layers(ScheduleRequest(6, strategy.num_kept(6, 2.0))) == kept


def test_only_even_forgives_float_division():
    ratio = 10 / 7 * (1 + 1e-15)
    assert 10 / ratio < 7
    assert Unified(spacing="even").num_kept(10, ratio) == 7
    assert Unified(spacing="reference").num_kept(10, ratio) == 6


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a schedule file and returns its path."""

    def written(kept=(0, 3), **fields):
        file = tmp_path / "s.json"
        file.write_text(ScheduleFile(num_layers=6, kept_layers=kept, **fields).to_json())
        return str(file)

    return written


def test_listed_layers_and_those_of_a_file_are_kept_and_are_one_point(write):
    listed, filed = Custom(layers=[0, 3]), Custom(file=write())
    for strategy in (listed, filed):
        assert strategy.kept_layers(ScheduleRequest(6, strategy.num_kept(6, 9.0))) == (0, 3)
    identity = compose(["strategy=custom", "strategy.layers=[0,3]"]).identity()
    assert compose(["strategy=custom", f"strategy.file={write()}"]).identity() == identity
    assert compose(["strategy=custom", f"strategy.file={write((0, 4))}"]).identity() != identity


def test_layers_that_do_not_fit_are_refused(write):
    with pytest.raises(UsageError, match=r"0 and 5\b.*\[0, 6\]"):
        Custom(layers=[0, 6]).kept_layers(ScheduleRequest(6, 2))
    with pytest.raises(UsageError, match=r"\b7 layers.*\b6 in .*\.json"):
        Custom(file=write()).kept_layers(ScheduleRequest(7, 2))
    with pytest.raises(UsageError, match=r"strategy\.layers.*strategy\.file"):
        Custom(layers=[0, 3], file="s.json")


def test_a_file_of_stages_is_refused(write):
    stages = ({"first_step": 4, "kept_layers": [0]},)
    with pytest.raises(UsageError, match="strategy=skip_decode"):
        Custom(file=write(later_stages=stages, strategy="skip_decode")).num_kept(6, 1.0)


def test_a_schedule_comes_back_as_it_was(tmp_path):
    schedule = ScheduleFile(
        num_layers=12,
        kept_layers=(0, 4, 7, 11),
        strategy="unified",
        strategy_options={"spacing": "even"},
        target_ratio=3.0,
    )
    (tmp_path / "s.json").write_text(schedule.to_json())
    assert read_schedule(tmp_path / "s.json") == schedule
    first = ["format", "format_version", "num_layers", "kept_layers"]
    assert list(json.loads(schedule.to_json()))[:4] == first
    short = {"format": "ulskip-schedule", "num_layers": 4, "kept_layers": [0, 3]}
    (tmp_path / "s.json").write_text(json.dumps(short))
    assert read_schedule(tmp_path / "s.json") == ScheduleFile(num_layers=4, kept_layers=(0, 3))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 100_000, "recursion"),
        ("[]", "JSON object"),
        ('{"format": "other"}', '"format": "ulskip-schedule"'),
        ('{"format": "ulskip-schedule", "format_version": 9}', "format_version.* 9"),
        ('{"format": "ulskip-schedule", "num_layers": true, "kept_layers": [0]}', "num_layers"),
        ('{"format": "ulskip-schedule", "num_layers": 4, "kept_layers": ["x"]}', "kept_layers"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused(tmp_path, text, match):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UsageError, match=match):
        read_schedule(tmp_path / "s.json")
