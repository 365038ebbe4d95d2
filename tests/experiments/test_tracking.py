import json
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest

from ulskip_cli.core import tracking as core_tracking
from ulskip_cli.core.config import compose
from ulskip_cli.experiments.record import Record, read
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep import run as sweep
from ulskip_cli.experiments.sweep.jobs import make_jobs
from ulskip_cli.experiments.tracking import run_name, split_row


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

    monkeypatch.setattr(core_tracking, "_is_installed", lambda package: True)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", FakeTracker)
    monkeypatch.setattr(FakeTracker, "made", [])
    return FakeTracker


COMPARED = {"full": 22.0, "delta": -1.5, "delta_low": -2.0, "delta_high": -1.0, "p_value": 0.01}


def record(config, **keys):
    row = {
        "id": "p",
        "strategy": "unified",
        "target_speedup": 2.0,
        "engine": "torch",
        "bleu": 20.5,
        "kept_layers": [0, 2],
    }
    row |= {"status": "done", "batch_size": 1, "num_layers": 4, "layer_ratio": 2.0}
    return read(
        json.dumps(
            {**row, "config": {"seed": 1}, "pairs": {"strategy": {"decode_seconds": [0.1]}}, **keys}
        )
    )


def test_a_row_becomes_parameters_and_metrics():
    config = compose(["tracker_options={project: mine}"])
    parameters, metrics = split_row(
        config, record(config, seed=1, vs_baseline={"bleu": COMPARED}, chat=True)
    )
    compared = {f"vs_baseline.bleu.{key}": value for key, value in COMPARED.items()}
    assert metrics == {
        "target_speedup": 2.0,
        "num_layers": 4,
        "layer_ratio": 2.0,
        "bleu": 20.5,
        **compared,
    }
    expected = {
        "id": "p",
        "engine": "torch",
        "kept_layers": "[0, 2]",
        "chat": True,
        "seed": 1,
        "model.name": "tiny",
    }
    assert {key: parameters.get(key) for key in expected} == expected
    assert not any(key.startswith(("tracker", "launcher", "pairs")) for key in parameters)


def test_a_run_is_named_by_strategy_ratio_and_identifier():
    assert run_name(record(None)) == "unified-2x-p"
    assert run_name(record(None, target_speedup=None)) == "unified-p"


def test_every_finished_point_is_logged_once(ulskip, overrides, fake):
    code, out, _ = ulskip(
        "run", *overrides, "tracker=mlflow", "tracker_options={project: mine}", "--json"
    )
    assert code == 0 and "noise" not in out
    assert [one.project for one in fake.made] == ["mine", "mine"]
    assert [one.options["run_name"].rpartition("-")[0] for one in fake.made] == [
        "full-1x",
        "unified-2x",
    ]
    for one in fake.made:
        assert [call[0] for call in one.calls] == [
            "start",
            "store_init_configuration",
            "log",
            "finish",
        ]
    assert "measured_speedup" in fake.made[1].calls[2][1]


def test_a_sweep_logs_what_it_runs_and_no_failures(ulskip, overrides, fake):
    point = ["sweep", *overrides, "baseline=false", "tracker=mlflow"]
    _, out, _ = ulskip(*point, "ratio=2,100", "--json")
    assert [row["status"] for row in json.loads(out)["rows"]] == ["done", "n/a"]
    assert len(fake.made) == 1
    ulskip(*point, "ratio=2,100")  # finished before
    assert len(fake.made) == 1


@pytest.mark.parametrize("broken", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_loses_no_run(tmp_path, capsys, fake, monkeypatch, broken):
    monkeypatch.setattr(fake, "broken", broken)
    config = compose([f"results_dir={tmp_path}", "tracker=mlflow"])
    folder = ResultsFolder.of(config)
    folder.save(config, record(config), [])
    assert folder.record("p")
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1 and "tracker=mlflow" in err and "no network" in err
    assert fake.made[0].calls[-1] == ("finish",)


def test_a_missing_package_is_an_error_before_the_run(ulskip, monkeypatch):
    monkeypatch.setattr(core_tracking, "find_spec", lambda name: None)
    for command in ("run", "bench", "train"):
        code, _, err = ulskip(command, "tracker=trackio")
        assert code == 2 and "'ulskip[trackio]'" in err


def test_a_folder_with_the_name_of_a_package_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not core_tracking._is_installed("wandb")


def test_the_tracker_is_no_part_of_a_row():
    plain = compose([])
    tracked = plain.replace(tracker="mlflow", tracker_options={"project": "mine"})
    assert tracked.identity == plain.identity
    assert tracked.recorded() == plain.recorded()


def test_tensorboard_stores_parameters_and_metrics(tmp_path):
    pytest.importorskip("tensorboardX")
    config = compose([f"results_dir={tmp_path}", "tracker=tensorboard"])
    ResultsFolder.of(config).save(config, record(config), [])
    folder = tmp_path / "default" / "tensorboard" / "ulskip" / "unified-2x-p"
    assert b"bleu" in b"".join(path.read_bytes() for path in folder.glob("events*"))
    assert any("engine: torch" in path.read_text() for path in folder.glob("*/hparams.yml"))


@pytest.mark.filterwarnings("default")
def test_mlflow_stores_parameters_and_metrics(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    config = compose([f"results_dir={tmp_path}", "tracker=mlflow"])
    ResultsFolder.of(config).save(config, record(config), [])
    (run,) = mlflow.search_runs(experiment_names=["ulskip"], output_format="list")
    assert (run.info.run_name, run.data.params["id"], run.data.metrics["bleu"]) == (
        "unified-2x-p",
        "p",
        20.5,
    )


def test_a_sweep_waits_until_its_workers_have_logged(fake, monkeypatch, tmp_path):
    words = ["strategy=full", f"results_dir={tmp_path}", "launcher=local", "tracker=mlflow"]
    (job,) = make_jobs([compose(words)])
    alive, ended = iter([1, 1, 0]), []

    def started(*given):
        folder = ResultsFolder.of(job.config)  # the row is stored, and the worker still logs it
        folder.save_generations(job.id, [])
        folder.append(Record.joined(job.identity))
        return SimpleNamespace(alive=lambda: next(alive), end=lambda: ended.append(list(alive)))

    monkeypatch.setattr(sweep, "POLL_SECONDS", 0)
    monkeypatch.setitem(sweep.POOLS, "local", started)
    observer = SimpleNamespace(
        job_settled=lambda *given: None, rows_changed=lambda folder: None, note=lambda text: None
    )
    outcome = sweep.run_sweep([job], sweep.SweepOptions(words=words), observer)
    assert ended == [[]]  # asked until no worker was alive
    assert outcome.records[job.id].is_done and fake.made == []  # the worker logs, not the sweep
