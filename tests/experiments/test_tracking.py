import contextlib
from types import SimpleNamespace
from typing import ClassVar

import pytest
from report_rows import sweep_row

from ulskip_cli.core import tracking
from ulskip_cli.core.config import compose
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep import jobs as sweep
from ulskip_cli.experiments.sweep.jobs import make_jobs


class FakeTracker:
    """Keeps what it is given; `broken` names a method that fails."""

    requires_logging_directory = False
    made: ClassVar[list] = []
    broken = None

    def __init__(self, project, **options):
        self.project, self.options, self.calls = project, options, []
        FakeTracker.made.append(self)

    def __getattr__(self, name):
        def call(*values, **options):
            print("noise")
            self.calls.append((name, *values))
            if name == FakeTracker.broken:
                raise ConnectionError("no network")

        return call


@pytest.fixture
def fake(monkeypatch):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    monkeypatch.setattr(tracking, "_is_installed", lambda package: True)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", FakeTracker)
    monkeypatch.setattr(FakeTracker, "made", [])
    return FakeTracker


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a finished record with a tracker."""

    def call(tracker):
        config = compose([f"results_dir={tmp_path}", f"tracker={tracker}"])
        folder = ResultsFolder.of(config)
        folder.save_generations("p", [])
        folder.save(config, sweep_row(id="p", engine="torch", chat=True))
        assert folder.record("p").is_done

    return call


def test_a_sweep_logs_every_point_that_it_finishes_once(ulskip, overrides, fake):
    tracked = ["tracker=mlflow", "tracker_options={project: mine}", "ratio=2,100"]
    assert ulskip("sweep", *overrides, *tracked)[0] == 0
    names = [run.options["run_name"].rpartition("-")[0] for run in fake.made]
    assert names == ["full-1x", "unified-2x"]
    for run in fake.made:
        steps = ["start", "store_init_configuration", "log", "finish"]
        assert (run.project, [call[0] for call in run.calls]) == ("mine", steps)
    assert "measured_speedup" in fake.made[1].calls[2][1]
    ulskip("sweep", *overrides, *tracked)  # finished before
    assert len(fake.made) == 2


@pytest.mark.parametrize("broken", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_loses_no_run(capsys, fake, monkeypatch, save, broken):
    monkeypatch.setattr(fake, "broken", broken)
    save("mlflow")
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "tracker=mlflow" in err and "no network" in err
    assert fake.made[0].calls[-1] == ("finish",)


def test_a_missing_package_is_an_error_before_the_run(ulskip, monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()  # a folder of logged runs is no package
    monkeypatch.syspath_prepend(tmp_path)
    for command in ("run", "bench", "train"):
        code, _, err = ulskip(command, "tracker=wandb")
        assert code == 2 and "'ulskip[wandb]'" in err


def test_tensorboard_stores_parameters_and_metrics(tmp_path, save):
    pytest.importorskip("tensorboardX")
    save("tensorboard")
    folder = tmp_path / "default" / "tensorboard" / "ulskip" / "unified-2x-p"
    assert b"bleu" in b"".join(path.read_bytes() for path in folder.glob("events*"))
    assert any("engine: torch" in path.read_text() for path in folder.glob("*/hparams.yml"))


def test_a_sweep_waits_until_its_workers_have_logged(fake, monkeypatch, tmp_path):
    words = ["strategy=full", f"results_dir={tmp_path}", "launcher=local", "tracker=mlflow"]
    (job,) = make_jobs([compose(words, command="sweep")])
    alive, ended = iter([1, 1, 0]), []

    @contextlib.contextmanager
    def started(*given):
        folder = ResultsFolder.of(job.config)  # the row is stored, and the worker still logs it
        folder.save_generations(job.id, [])
        folder.append(Record.joined(job.identity))
        yield lambda: next(alive)
        ended.append(list(alive))

    monkeypatch.setattr(sweep, "POLL_SECONDS", 0)
    monkeypatch.setitem(sweep.POOLS, "local", started)
    observer = SimpleNamespace(
        job_settled=lambda *given: None, rows_changed=lambda folder: None, note=lambda text: None
    )
    outcome = sweep.Sweep([job], observer, words=words).run()
    assert ended == [[]]  # asked until no worker was alive
    assert outcome.records[job.id].is_done and fake.made == []  # the worker logs, not the sweep
