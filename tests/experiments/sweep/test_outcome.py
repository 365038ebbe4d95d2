import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import RunError
from ulskip_cli.experiments.sweep import sequential


@pytest.fixture
def points(tmp_path):
    return [compose([f"ratio={ratio}", f"results_dir={tmp_path}"]) for ratio in (2, 3)]


def fail(point):
    raise RunError(f"no\n{point.ratio:g}")


def test_a_point_that_fails_does_not_stop_the_others(points, capsys):
    def run_point(point):
        return fail(point) if point.ratio == 2 else [{"id": "full"}, {"id": "half"}]

    outcome = sequential.run(points, lambda progress: run_point)
    assert outcome.told() == {"rows": [{"id": "full"}, {"id": "half"}], "failed": ["unified ratio 2: no 2"]}
    with pytest.raises(RunError, match="1 of 2 points failed, the first: unified ratio 2: no 2"):
        outcome.check()


def test_the_error_of_a_single_point_is_its_own(points, tmp_path):
    with pytest.raises(RunError, match="no\n2"):
        sequential.run(points[:1], lambda progress: fail)
    assert not (tmp_path / "default").exists()


def test_an_empty_folder_of_the_users_stays(points, tmp_path):
    (tmp_path / "default").mkdir()
    with pytest.raises(RunError):
        sequential.run(points[:1], lambda progress: fail)
    assert (tmp_path / "default").is_dir()


def test_a_single_points_own_row_is_told(points):
    outcome = sequential.run(points[:1], lambda progress: lambda point: [{"id": "full"}, {"id": "half"}])
    assert outcome.told() == {"id": "half"}
    outcome.check()


def test_a_row_stands_where_it_came_last(points):
    rows = iter([[{"id": "full"}, {"id": "a"}], [{"id": "full"}, {"id": "b"}]])
    outcome = sequential.run(points, lambda progress: lambda point: next(rows))
    assert list(outcome.rows) == ["a", "full", "b"]
