import dataclasses
import json

import pytest
from report_rows import sweep_row

from ulskip_cli.core.config import compose_tuning
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.preflight import evaluated_examples, find_held_out
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.tuning import search
from ulskip_cli.tuning.request import resolve_tuning
from ulskip_cli.tuning.result import Alternative
from ulskip_cli.tuning.search import StepLog, Tuning, decide

ONE = "candidates=['strategy=unified correction=none']"
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


class NoteList(ProgressCallback):
    """Collects the notes of a tuning."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def row(folder, name, share):
    """Store answers of which a share is right, and return the record of their run."""
    answers = [
        {
            "source": f"s{i}",
            "reference": word * 3,
            "hypothesis": word * 3 if i % 10 < 10 * share else "wrong",
        }
        for i, word in enumerate(WORDS * 6)
    ]
    ResultsFolder(folder).save_generations(name, answers)
    config = {"task": {"metrics": ["exact_match"]}}
    scores = {"exact_match": 100 * share, "bleu": None, "config": config, "pair": None}
    return sweep_row(id=name, folder=str(folder), **scores)


@pytest.mark.parametrize(("shares", "best"), [((0.5, 0.9, 0.2), 1), ((0.5, 0.5), 0), ((0.5,), 0)])
def test_a_surely_better_metric_beats_a_lower_loss(tmp_path, shares, best):
    assert decide([row(tmp_path, f"r{i}", share) for i, share in enumerate(shares)]) == best


def test_a_speedup_is_tuned_and_exported(tune, tmp_path, ulskip, rows_of):
    code, found, err = tune("speedup=1.5", "--to", "out")
    assert code == 0, err
    kept = found["kept_layers"]
    assert 2 <= len(kept) <= 8 and found["row"]["kept_layers"] == kept
    assert found["row"]["num_examples"] == found["num_choice"] == 8
    assert (tmp_path / "out" / "ulskip_export.json").is_file()
    stored = tmp_path / "results" / "tune" / "tuning" / f"{found['key']}.json"
    assert json.loads(stored.read_text())["run"] == found["run"]
    rows = rows_of()
    assert tune("speedup=1.5")[1]["kept_layers"] == kept and rows_of() == rows
    code, out, err = ulskip("run", *found["run"], "name=again", "speed.enabled=false", "--json")
    row = json.loads(out.splitlines()[-1])
    assert code == 0, err
    assert row["kept_layers"] == kept and row["bleu"] == pytest.approx(found["row"]["bleu"])
    assert row["decode_loss"] == pytest.approx(found["row"]["decode_loss"])


def test_look_ups_are_measured_before_layers_and_reported(tune, monkeypatch, rows_of):
    monkeypatch.setattr(Alternative, "meets", lambda self, config: self.is_same)
    code, found, err = tune(
        "speedup=1.5", "model.dtype=auto", "batch_size=1", "limit=4", "choice_examples=4", ONE
    )
    assert code == 0, err
    (look_up,) = found["alternatives"]
    assert look_up["num_same"] == look_up["row"]["num_examples"] == found["num_choice"] == 4
    assert "acceptance_rate" in look_up["row"] and look_up["row"] in rows_of()
    best = found["best_alternative"]
    assert best["alternative"] == found["recommended"] == "decoding=prompt_lookup"
    assert best["row"]["id"] != look_up["row"]["id"] and "decoding=prompt_lookup" in found["use"]
    assert best["row"]["baseline_id"] == found["row"]["baseline_id"]


def test_alternatives_that_the_budget_has_no_time_for_are_named(tmp_path):
    notes = NoteList()
    wish = ["speedup=1.5", "batch_size=1", "engine=torch", "budget=1e-9"]
    config = compose_tuning([*wish, f"results_dir={tmp_path}"])
    assert Tuning(resolve_tuning(config), notes, None).without_loss() == []
    assert notes.notes == ["no time is left for decoding=prompt_lookup; raise budget=1e-09"]


def test_a_step_begins_if_one_as_long_as_the_last_ends_in_time(tmp_path, monkeypatch):
    now = 0.0

    def measure(jobs):
        nonlocal now
        now += 4
        raise RunError("not here")

    wish = ["speedup=1.5", "batch_size=1", "engine=torch", "budget=60"]
    request = resolve_tuning(compose_tuning([*wish, f"results_dir={tmp_path}"]))
    (look_ups,) = request.alternatives
    names = [f"candidate {i}" for i in range(5)]
    several = [dataclasses.replace(look_ups, label=name) for name in names]
    monkeypatch.setattr(StepLog, "minutes", property(lambda self: now))
    notes = NoteList()
    Tuning(dataclasses.replace(request, alternatives=several), notes, measure).without_loss()
    begun, late = [f"left out: {name}: not here" for name in names[:3]], ", ".join(names[3:])
    assert notes.notes == [*begun, f"no time is left for {late}; raise budget=60"]


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [((1, 0.1), (20, 20)), ((10, 0.1), (11, 20)), ((1, 1), (20, 13)), ((1000, 1000), (10, 10))],
)
def test_slow_answers_and_losses_leave_fewer_examples(tmp_path, monkeypatch, seconds, counts):
    times, measured = dict(zip(("answer", "loss"), seconds, strict=True)), []

    def measure(tuning):
        measured.append(tuning)
        return times

    monkeypatch.setattr(Tuning, "seconds_of_an_example", measure)
    few = ["limit=8", "choice_examples=20", "calibration.examples=20", f"results_dir={tmp_path}"]
    request = resolve_tuning(compose_tuning(["speedup=1.5", "batch_size=8", *few]))
    for _ in range(2):
        notes = NoteList()
        tuning = Tuning(request, notes, None)
        tuning.fit_into_budget()
        split = tuning.request.split
        assert (split.num_choice, split.choice.calibration.examples) == counts
        assert split.final.calibration.offset == split.num_choice
        assert len(notes.notes) == (counts != (20, 20))
    assert len(measured) == 1
    assert not {example.texts for example in evaluated_examples(split.choice)} & {
        example.texts for example in find_held_out(split.choice).examples
    }


def test_what_the_weights_were_trained_for_is_tried_first(tmp_path, monkeypatch):
    request = resolve_tuning(compose_tuning(["speedup=1.5", f"results_dir={tmp_path}"]))
    tuning = Tuning(request, NoteList(), None)
    trained = tuning.candidates
    assert {candidate.label for candidate in trained} == {
        candidate.label for candidate in request.candidates
    }
    assert trained[0].label == "unified correction=none"
    monkeypatch.setattr(search, "training_record", lambda model: None)
    assert tuning.candidates == request.candidates and trained != request.candidates


@pytest.mark.parametrize(("minutes", "count"), [(0, 48), (30, 48), (50, 20), (59, 10), (61, 10)])
def test_the_final_report_ends_within_the_budget(tmp_path, monkeypatch, minutes, count):
    monkeypatch.setattr(Tuning, "seconds_of_an_example", lambda _: {"answer": 10, "loss": 0.1})
    wish = ["speedup=1.5", "budget=60", "limit=60", f"results_dir={tmp_path}"]
    tuning = Tuning(resolve_tuning(compose_tuning(wish)), NoteList(), None)
    tuning.fit_into_budget()
    monkeypatch.setattr(StepLog, "minutes", property(lambda self: float(minutes)))
    assert tuning.num_final == count


@pytest.mark.slow
@pytest.mark.long
def test_engines_and_formats_are_measured_against_the_configured_engine(tune):
    pytest.importorskip("llama_cpp")
    code, found, err = tune("speedup=1.5", "engine=auto", ONE)
    assert code == 0, err
    names = [option["alternative"] for option in found["alternatives"]]
    assert {"engine=llama_cpp_q8_0", "engine=llama_cpp_q4_0"} <= {*names}
    assert len({option["row"]["baseline_id"] for option in found["alternatives"]}) == 1


def test_a_step_that_a_crash_cut_runs_again(tmp_path):
    path = tmp_path / "log.jsonl"
    log = StepLog(path)
    log.once("a", lambda: 1)
    log.once("b", lambda: 2)
    path.write_bytes(path.read_bytes()[:-7])
    again = StepLog(path)
    assert (again.once("a", lambda: 7), again.once("b", lambda: 8)) == (1, 8)
    assert (StepLog(path).once("a", lambda: 9), StepLog(path).once("b", lambda: 9)) == (1, 8)


def test_the_time_of_finished_steps_counts_after_an_interruption(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": "a", "value": {"refused": "no\\u001b[2J"}, "seconds": 600.0}\n')
    assert 10 <= StepLog(path).minutes < 11
    assert StepLog(path).once("a", dict) == {"refused": "no\\x1b[2J"}


@pytest.mark.slow
def test_a_speedup_out_of_reach_gets_the_nearest(tune):
    code, fast, err = tune("speedup=6")
    assert code == 0 and len(fast["kept_layers"]) == 2 and not fast["meets_wish"], err


@pytest.mark.slow
@pytest.mark.parametrize(
    "wish", [["speedup=1.5"], ["quality=0.001", "candidates=['strategy=unified correction=none']"]]
)
def test_an_interrupted_tuning_ends_with_the_same_choice(
    tune, tmp_path, wish, monkeypatch, rows_of
):
    once = StepLog.once

    def interrupted(log, step, run, *refusals):
        ran = []
        value = once(log, step, lambda: ran.append(step) or run(), *refusals)
        if ran:
            raise KeyboardInterrupt
        return value

    codes = []
    with monkeypatch.context() as patched:
        patched.setattr(StepLog, "once", interrupted)
        while not codes or codes[-1] == 130:
            code, resumed, err = tune(*wish, "adapter=auto", "adapter_steps=2")
            codes.append(code)
    assert codes[-1] == 0 and len(codes) > 3, err
    (log,) = (tmp_path / "results/tune/tuning").glob("*.jsonl")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    steps = [step for step in steps if not step.startswith("points ")]  # rows store their values
    assert len(steps) == len(set(steps)) == codes.count(130)
    assert resumed["trials"][-1]["adapter"] == resumed["adapter"]["folder"]
    ids = [row["id"] for row in rows_of()]
    assert len(set(ids)) == len(ids) and resumed["row"]["id"] in ids
    assert "speedup=1.5" in wish or resumed["meets_wish"]
    best = min(resumed["trials"], key=lambda trial: (len(trial["kept_layers"]), trial["loss"]))
    assert len(best["kept_layers"]) == len(resumed["kept_layers"])
