import json
from pathlib import Path

import pytest

from ulskip_cli.tuning import search as adapter
from ulskip_cli.tuning.search import Tuning

ONE = "candidates=['strategy=unified']"
TRAIN = ["speedup=1.5", "adapter=auto", "adapter_steps=3"]


def with_seconds(monkeypatch, seconds):
    """Give every training other seconds; return the list of their configurations."""
    run, trained = adapter.run_training, []

    def changed(config, *args):
        trained.append(config)
        return run(config, *args).replace(seconds=seconds(config))

    monkeypatch.setattr(adapter, "run_training", changed)
    return trained


def with_loss(monkeypatch, change):
    """Change the decode loss of the trained adapter."""
    run = Tuning.measure_loss

    def changed(self, candidate, num_kept):
        trial = run(self, candidate, num_kept)
        trained = candidate.config.correction.label == "adapter"
        return trial.replace(loss=trial.loss + change) if trained else trial

    monkeypatch.setattr(Tuning, "measure_loss", changed)


def test_a_better_adapter_is_chosen_run_and_exported(tune, tmp_path, monkeypatch, ulskip):
    with_loss(monkeypatch, -1)
    monkeypatch.setattr(adapter, "decide", lambda records: 0)  # the lowest loss
    code, found, err = tune(*TRAIN, ONE, "correction.kind=folded", "--to", "out")
    assert code == 0, err
    folder = tmp_path / found["adapter"]["folder"]
    assert found["adapter"]["chosen"]
    assert folder.parent.name == f"{found['key']}-adapter" and (folder / "adapter.json").is_file()
    record = json.loads((folder / "adapter.json").read_text())
    assert record["kept_sets"] == [found["kept_layers"]] and record["kind"] == "folded"
    assert found["row"]["correction"]["path"] == found["adapter"]["folder"]
    code, out, err = ulskip("run", *found["run"], "name=again", "speed.enabled=false", "--json")
    assert code == 0, err
    row = json.loads(out.splitlines()[-1])
    assert row["decode_loss"] == pytest.approx(found["row"]["decode_loss"])
    exported = json.loads((tmp_path / "out" / "ulskip_export.json").read_text())
    assert exported["skip_adapter"] == found["adapter"]["folder"]


def test_a_worse_adapter_is_left_out(tune, monkeypatch):
    with_loss(monkeypatch, 1)
    code, found, err = tune(*TRAIN)
    assert code == 0, err
    assert not found["adapter"]["chosen"] and "correction" not in found["row"]


def test_the_budget_decides_the_number_of_steps_once(tune, tmp_path, monkeypatch):
    code, found, err = tune(ONE, "speedup=1.5", "adapter=auto", "budget=0.5")
    assert code == 0 and "60 seconds" in found["adapter"]["refused"], err
    assert "left out: trained adapter" in err
    monkeypatch.setattr(adapter, "MIN_SECONDS", 1e-3)
    code, found, err = tune(ONE, "speedup=1.5", "adapter=always", "budget=0.01", "limit=12")
    assert code == 0 and found["adapter"]["steps"] == 1, err
    assert found["num_final"] == found["row"]["num_examples"] == 10, err
    monkeypatch.setitem(adapter.PROBE, "steps", 2)
    timed = with_seconds(monkeypatch, lambda config: 9.0 if config.train.max_steps == 2 else 0.0)
    code, found, err = tune(ONE, "speedup=1.5", "adapter=auto", "budget=2")
    assert code == 0 and 1 < found["adapter"]["steps"] <= 2 * 60 / (9 / 2), err
    assert len(timed) == 2 and timed[1].train.max_steps == found["adapter"]["steps"]
    assert not Path(timed[0].output).exists() and Path(timed[1].output).is_dir()
    assert tune(ONE, "speedup=1.5", "adapter=auto", "budget=2")[1]["adapter"] == found["adapter"]
    assert len(timed) == 2


@pytest.mark.slow
@pytest.mark.long
def test_engines_of_other_libraries_get_adapters_that_merge(tune, tmp_path):
    pytest.importorskip("llama_cpp")
    code, found, err = tune(*TRAIN, ONE, "engine=llama_cpp", "--to", "out")
    assert code == 0, err
    assert (tmp_path / "out" / "ulskip_export.json").is_file()
    assert found["adapter"]["steps"] == 3 and found["trials"][-1]["adapter"]
