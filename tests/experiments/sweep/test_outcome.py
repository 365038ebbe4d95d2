import pytest

from ulskip_cli.cli.progress_bars import ProgressBars
from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import RunError, StorageError
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import Point, Record
from ulskip_cli.experiments.sweep.outcome import run_each


@pytest.fixture
def points(tmp_path):
    resolver = Resolver()
    return [
        resolver.resolve(compose([f"ratio={ratio}", f"results_dir={tmp_path}"])) for ratio in (2, 3)
    ]


def records(*ids):
    return [Record.joined(Point(id=run_id, strategy="unified", batch_size=1)) for run_id in ids]


def run(points, run_point):
    with ProgressBars() as bars:
        return run_each(points, run_point, bars)


def fail(point):
    raise RunError(f"no\n{point.config.ratio:g}")


def test_a_point_that_fails_does_not_stop_the_others(points, capsys):
    outcome = run(
        points, lambda point: fail(point) if point.config.ratio == 2 else records("full", "half")
    )
    printed = outcome.as_json()
    assert ([row["id"] for row in printed["rows"]], printed["failed"]) == (
        ["full", "half"],
        ["unified ratio 2: no 2"],
    )
    with pytest.raises(RunError, match=r"1 of 2 .*unified ratio 2: no 2"):
        outcome.check()


def test_a_full_disk_stops_all_points(points):
    def no_room(point):
        raise StorageError("full")

    with pytest.raises(StorageError, match="full"):
        run(points, no_room)


def test_the_error_of_a_single_point_is_its_own(points, tmp_path):
    with pytest.raises(RunError, match="no\n2"):
        run(points[:1], fail)
    assert not (tmp_path / "default").exists()


def test_an_empty_folder_of_the_users_stays(points, tmp_path):
    (tmp_path / "default").mkdir()
    with pytest.raises(RunError):
        run(points[:1], fail)
    assert (tmp_path / "default").is_dir()


def test_the_row_of_a_single_point_is_printed_alone(points):
    outcome = run(points[:1], lambda point: records("full", "half"))
    assert outcome.as_json()["id"] == "half"
    outcome.check()


def test_a_record_stands_where_it_came_last(points):
    found = iter([records("full", "a"), records("full", "b")])
    assert list(run(points, lambda point: next(found)).records) == ["a", "full", "b"]


def test_lines_that_cannot_be_read_are_reported_and_moved(points, tmp_path, capsys):
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "runs.jsonl").write_text("half a li")
    run(points, lambda point: records("a"))
    assert capsys.readouterr().err.count("runs.broken.jsonl") == 1
    assert (tmp_path / "default" / "runs.broken.jsonl").read_text() == "half a li\n"
