import pytest
from ulskip_cli.strategies.schedule_file import ScheduleFile

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.strategies.custom import Custom


def written(folder, kept=(0, 3), **fields):
    file = folder / "s.json"
    file.write_text(ScheduleFile(num_layers=6, kept_layers=kept, **fields).to_json())
    return str(file)


def test_keeps_what_is_listed():
    custom = Custom(layers=[0, 3])
    assert custom.kept_layers(6, custom.num_kept(6, 9.0)) == (0, 3)
    assert not Custom.follows_ratio


def test_layers_beyond_the_model_are_refused():
    with pytest.raises(UsageError, match=r"0 and 5\b.*\[0, 6\]"):
        Custom(layers=[0, 6]).kept_layers(6, 2)


def test_keeps_what_a_file_lists(tmp_path):
    custom = Custom(file=written(tmp_path))
    assert custom.kept_layers(6, custom.num_kept(6, 9.0)) == (0, 3)


def test_a_file_is_for_models_of_its_depth(tmp_path):
    with pytest.raises(UsageError, match=r"\b7 layers.*\b6 in .*\.json"):
        Custom(file=written(tmp_path)).kept_layers(7, 2)


def test_later_stages_are_refused(tmp_path):
    stages = ({"first_step": 4, "kept_layers": [0]},)
    file = written(
        tmp_path,
        later_stages=stages,
        strategy="skip_decode",
        strategy_options={"horizon": 7.5},
        target_ratio=2.0,
    )
    with pytest.raises(UsageError, match=r"strategy=skip_decode strategy\.horizon=7\.5 ratio=2$"):
        Custom(file=file).num_kept(6, 1.0)


def test_two_schedules_at_once_are_refused():
    with pytest.raises(UsageError, match=r"strategy\.layers.*strategy\.file.*\[0, 3\].*s\.json"):
        Custom(layers=[0, 3], file="s.json")


def test_a_file_of_a_unit_needs_the_same_unit(tmp_path):
    file = tmp_path / "half.json"
    file.write_text(ScheduleFile(num_layers=6, kept_layers=(0, 3), unit="mlp").to_json())
    assert Custom(file=str(file), unit="mlp").kept_layers(6, 2) == (0, 3)
    with pytest.raises(UsageError, match=r"strategy\.unit=mlp.*half\.json, got layer"):
        Custom(file=str(file)).kept_layers(6, 2)


def test_a_file_is_the_point_that_its_layers_are(tmp_path):
    listed = compose(["strategy=custom", "strategy.layers=[0,3]"]).identity
    assert compose(["strategy=custom", f"strategy.file={written(tmp_path)}"]).identity == listed
    other = written(tmp_path, (0, 4))
    assert compose(["strategy=custom", f"strategy.file={other}"]).identity != listed
