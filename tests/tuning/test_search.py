import json

import pytest

from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.tuning.search import decide

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def row(folder, name, share):
    """Store answers of which a share is right, and return the row of their run."""
    answers = [
        {"source": f"s{i}", "reference": word * 3, "hypothesis": word * 3 if i % 10 < 10 * share else "wrong"}
        for i, word in enumerate(WORDS * 6)
    ]
    ResultsFolder(folder).save_generations(name, answers)
    config = {"task": {"metrics": ["exact_match"]}}
    return {"id": name, "folder": str(folder), "exact_match": 100 * share, "config": config, "pair": None}


def test_a_surely_better_metric_beats_a_lower_loss(tmp_path):
    rows = [row(tmp_path, "a", 0.5), row(tmp_path, "b", 0.9), row(tmp_path, "c", 0.2)]
    assert decide(rows) == 1


def test_the_loss_decides_where_the_metric_is_a_tie(tmp_path):
    rows = [row(tmp_path, "a", 0.5), row(tmp_path, "b", 0.5)]
    assert decide(rows) == 0 and decide(rows[:1]) == 0


FEW = ["task=wmt", "limit=12", "choice_examples=8", "calibration.examples=8", "speed.pairs=3", "speed.warmup=1"]
FEW += ["decoding.max_new_tokens=12", "batch_size=4", "calibration.patch_tokens=50"]
CHEAP = "candidates=['strategy=unified strategy.patch=none','strategy=unified','strategy=top_skip strategy.patch=none']"


@pytest.fixture
def tune(ulskip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *more: ulskip("tune", *FEW, CHEAP, *more)


def test_a_speedup_is_tuned_exported_and_not_measured_twice(tune, tmp_path):
    code, out, err = tune("speedup=1.5", "--json", "--to", "out")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    kept = found["kept_layers"]
    assert 2 <= len(kept) < 12 and found["row"]["kept_layers"] == kept
    assert found["row"]["num_examples"] == 12 and found["num_choice"] == 8
    assert min(found["trials"], key=lambda one: one["loss"])["candidate"] in {one["candidate"] for one in found["trials"]}
    assert (tmp_path / "out" / "ulskip_export.json").is_file()
    stored = json.loads((tmp_path / "results" / "tune" / "tuning" / f"{found['key']}.json").read_text())
    assert stored["run"] == found["run"]
    rows = (tmp_path / "results" / "tune" / "runs.jsonl").read_bytes()
    code, out, err = tune("speedup=1.5", "--json")
    again = json.loads(out.splitlines()[-1])
    assert code == 0 and again["kept_layers"] == kept
    assert (tmp_path / "results" / "tune" / "runs.jsonl").read_bytes() == rows


def test_the_command_that_is_told_runs_the_same_layers(tune, ulskip):
    _, out, _ = tune("speedup=1.5", "--json")
    found = json.loads(out.splitlines()[-1])
    code, out, err = ulskip("run", *found["run"], "name=again", "speed.enabled=false", "--json")
    row = json.loads(out.splitlines()[-1])
    assert code == 0, err
    assert row["kept_layers"] == found["kept_layers"] and row["bleu"] == pytest.approx(found["row"]["bleu"])


@pytest.mark.slow
def test_wishes_out_of_reach_get_the_nearest(tune):
    code, out, err = tune("speedup=50", "--json")
    fast = json.loads(out.splitlines()[-1])
    assert code == 0 and len(fast["kept_layers"]) == 2 and not fast["meets_wish"], err
    code, out, err = tune("quality=0.01", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["meets_wish"], err


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["speedup=1.5", "quality=0.9"])
def test_an_interrupted_tuning_ends_with_the_same_choice(tune, tmp_path, wish, monkeypatch):
    from ulskip_cli.tuning.step_log import StepLog

    once = StepLog.once

    def interrupted(log, step, run):
        known = log.has(step)
        value = once(log, step, run)
        if not known:
            raise KeyboardInterrupt
        return value

    with monkeypatch.context() as patched:
        patched.setattr(StepLog, "once", interrupted)
        codes = [tune(wish, "--json")[0] for _ in range(30)]
    assert codes[0] == 130 and codes[-1] == 0
    _, out, _ = tune(wish, "--json")
    steps = [json.loads(line)["step"] for file in (tmp_path / "results/tune/tuning").glob("*.jsonl") for line in file.open()]
    assert len(steps) == len(set(steps)) == codes.count(130)
    resumed = json.loads(out.splitlines()[-1])
    rows = [json.loads(line) for line in (tmp_path / "results/tune/runs.jsonl").open()]
    assert len({row["id"] for row in rows}) == len(rows)
    assert resumed["row"]["id"] in {row["id"] for row in rows}
