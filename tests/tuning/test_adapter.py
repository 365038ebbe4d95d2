import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.preflight import resolve as resolve_point
from ulskip_cli.tuning import search as adapter
from ulskip_cli.tuning.request import divide, training_examples
from ulskip_cli.tuning.search import Tuning

ONE = "candidates=['strategy=unified']"
TRAIN = ["speedup=1.5", "adapter=auto", "adapter_steps=3"]


def write(path, names):
    path.write_text(
        "".join(json.dumps({"prompt": name, "reference": "r"}) + "\n" for name in names)
    )
    return path


@settings(max_examples=60)
@given(
    count=st.integers(16, 60),
    repeated=st.lists(st.integers(0, 59), max_size=30),
    other=st.none() | st.lists(st.integers(100, 140), min_size=2, max_size=80),
    limit=st.integers(1, 40),
    wanted=st.integers(4, 30),
)
def test_no_example_that_chooses_or_is_reported_is_trained_on(
    tmp_path_factory, count, repeated, other, limit, wanted
):
    folder = tmp_path_factory.mktemp("data")
    file = write(folder / "a.jsonl", [f"p{i}" for i in [*range(count), *repeated]])
    overrides = ["task=jsonl", f"task.file={file}", "task.metrics=[exact_match]"]
    overrides += [f"limit={limit}", "calibration.examples=5"]
    if other:
        calibration = write(folder / "b.jsonl", [f"p{i}" for i in other])
        overrides.append(f"calibration.task={{file: {calibration}}}")
    split = divide(compose(overrides), wanted)
    sides = resolve_point(split.choice), resolve_point(split.final)
    used = {example.source for side in sides for example in side.data.examples}
    try:
        found = [example.source for example in training_examples(split)]
    except UsageError as error:
        assert "train" in str(error) or "held-out" in str(error) or "calibration" in str(error)
        return
    assert found and not set(found) & used
    rest = [f"p{i}" for i in (other or [])[split.num_choice :]]
    assert found == [name for name in rest if name not in used] if other else len(found) <= 5


def with_seconds(monkeypatch, seconds):
    """Give every training other seconds; return the list of their configurations."""
    run, trained = adapter.train, []

    def changed(config, *args):
        trained.append(config)
        return run(config, *args).replace(seconds=seconds(config))

    monkeypatch.setattr(adapter, "train", changed)
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
    code, found, err = tune(ONE, "speedup=1.5", "adapter=always", "budget=0.01")
    assert code == 0 and found["adapter"]["steps"] == 1, err
    monkeypatch.setitem(adapter.PROBE, "steps", 2)
    timed = with_seconds(monkeypatch, lambda config: 9.0 if config.train.max_steps == 2 else 0.0)
    code, found, err = tune(ONE, "speedup=1.5", "adapter=auto", "budget=2")
    assert code == 0 and 1 < found["adapter"]["steps"] <= 2 * 60 / (9 / 2), err
    assert len(timed) == 2 and timed[1].train.max_steps == found["adapter"]["steps"]
    assert not Path(timed[0].output).exists() and Path(timed[1].output).is_dir()
    assert tune(ONE, "speedup=1.5", "adapter=auto", "budget=2")[1]["adapter"] == found["adapter"]
    assert len(timed) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_cpp", "openvino"])
def test_engines_of_other_libraries_get_adapters_that_merge(tune, tmp_path, name):
    pytest.importorskip(name)
    code, found, err = tune(*TRAIN, ONE, f"engine={name}", "--to", "out")
    assert code == 0, err
    assert (tmp_path / "out" / "ulskip_export.json").is_file()
    assert found["adapter"]["steps"] == 3 and found["trials"][-1]["adapter"]
