import contextlib
import json

import pytest
from report_rows import configured, stored_rows, sweep_row

from ulskip_cli.core.config import compose_tuning
from ulskip_cli.experiments.ledger import SweepObserver
from ulskip_cli.tuning import TuneResult, Tuning

FEW = ["task=wmt", "limit=8", "choice_examples=8", "calibration.examples=8", "batch_size=8"]
FEW += ["speed.seconds=0", "speed.new_tokens=4", "max_new_tokens=6", "engine=torch"]
TWO = "candidates=['strategy=unified','strategy=unified correction=patch']"


class FakeTuning(Tuning):
    """A tuning whose rows have a speed and a score that follow from the number of layers."""

    def _measure(self, points):
        rows = []
        for point in points:
            _, plan = self.resolver.schedule(point, "run")
            depth, name = len(plan.kept_layers), point.strategy.name
            self.asked.append((name, depth, point.answers))
            row = sweep_row(
                id=f"{name} {depth} {point.answers} {point.limit}",
                bleu=30.0 - (12 - depth),
                speedup=self.speed(depth) if point.answers else None,
                decode_loss={"unified": 2.0, "top_skip": 3.0, "bottom_skip": 4.0}.get(name, 1.0),
                num_layers=12,
                kept_layers=plan.kept_layers,
            )
            if not point.answers:
                row = row.replace(measured_speedup=None, bleu=None)
            rows.append((point, configured(row, strategy=point.strategy.non_defaults())))
        self.tried |= {row.id: row for _, row in rows}
        return rows


@pytest.fixture
def tried(tmp_path):
    """Return a function that runs a fake tuning; it returns its result and its points."""

    def run(*overrides, speed=lambda depth: 12 / depth):
        given = [*FEW, f"results_dir={tmp_path}", *overrides]
        tuning = FakeTuning.of(compose_tuning(given))
        tuning.asked, tuning.speed = [], speed
        return tuning.run(None), tuning.asked

    return run


SKIPS = "candidates=['strategy=bottom_skip','strategy=top_skip','strategy=unified']"


def test_the_lowest_losses_are_scored_at_the_predicted_number_of_layers(tried):
    result, asked = tried("speedup=1.3", SKIPS)
    losses, scored, last = asked[:3], asked[3:5], asked[5:]
    assert losses == [(name, 8, False) for name in ("bottom_skip", "top_skip", "unified")]
    assert scored == [("unified", 8, True), ("top_skip", 8, True)]
    assert last == [("custom", 8, True)]
    assert result.chosen.strategy == "unified" and result.meets_wish


def test_fewer_layers_are_tried_until_one_number_is_fast_enough(tried):
    one = "speedup=1.8", "candidates=['strategy=unified']"
    result, asked = tried(*one, speed=lambda depth: 8 / depth)
    assert [depth for _, depth, _ in asked] == [6, 4, 4]  # 1.3x and 2x, and at the end
    assert len(result.record.kept_layers) == 4 and result.meets_wish
    result, asked = tried(*one, speed=lambda depth: 1.1)
    assert [depth for _, depth, _ in asked[:-1]] == [6, 3, 2] and not result.meets_wish
    assert result.verdict[0] == "The best of what was tried misses speedup=1.8."


def test_a_quality_is_found_by_bisection(tried):
    result, asked = tried("quality=0.85", "candidates=['strategy=unified']")
    assert [depth for _, depth, _ in asked] == [9, 5, 7, 8, 8]  # 26 of 30 are 87%, 25 are 83%
    assert len(result.record.kept_layers) == 8 and result.meets_wish
    result, _ = tried("quality=1.0", "candidates=['strategy=unified']")
    assert len(result.record.kept_layers) == 11 and not result.meets_wish


@pytest.mark.parametrize(
    ("row", "sentences"),
    [
        ({"speedup": 2.0}, ("Use this: unified", "speedup=1.5 is surely met")),
        ({"speedup": 1.51}, ("Use this: unified", "speedup=1.5 is met, but not surely")),
        ({"speedup": 2.0, "units": 2}, ("Use the full model", "The best: unified")),
        ({"speedup": 1.4}, ("The best of what was tried misses", "It is the nearest: unified")),
        ({"speedup": 1.01, "margin": 0.1}, ("Use the full model", "The best: unified")),
    ],
)
def test_the_verdict_says_what_to_use_in_two_sentences(row, sentences):
    tuning = Tuning.of(compose_tuning(["speedup=1.5", *FEW]))
    made = sweep_row(**row)
    result = TuneResult(tuning, made, made, tuning.test)
    assert all(text.startswith(part) for text, part in zip(result.verdict, sentences, strict=True))
    uses_full = sentences[0] == "Use the full model"
    assert (result.use.strategy.name == "full") is uses_full
    assert ("strategy=full" in result.as_json()["use"]) is uses_full


@pytest.fixture
def tune(ulskip, tmp_path, monkeypatch):
    """Return a function that tunes the bundled model in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*more):
        code, out, err = ulskip("tune", *FEW, *more, "--json")
        return code, json.loads(out.splitlines()[-1]) if code == 0 else None, err

    return call


def test_points_are_rows_and_the_command_runs_the_last_one_again(tune, ulskip, tmp_path):
    wish = ["speedup=1.3", TWO, "finalists=1", "batch_size=1"]
    code, found, err = tune(*wish)
    assert code == 0 and "2 other ways" in err, err
    drafted = [row for row in found["tried"] if row.get("draft_tokens")]
    decodings = {row["config"]["decoding"]["name"] for row in drafted}
    assert decodings == {"prompt_lookup", "self_speculative"}
    assert all(row["num_examples"] == 8 and row["measured_speedup"] for row in drafted)
    stored = stored_rows(tmp_path / "results/tune")
    untouched = [row for row in stored if row["config"].get("answers") is False]
    assert len(untouched) == 2 and not any("bleu" in row for row in untouched)
    assert all(row["num_examples"] == 8 and row["decode_loss"] for row in untouched)
    assert {row["id"] for row in found["tried"]} <= {row["id"] for row in stored}
    assert found["row"]["dataset"] == "sample" and found["row"]["id"] == stored[-1]["id"]
    assert tune(*wish)[1] == found
    assert stored_rows(tmp_path / "results/tune") == stored  # nothing is measured again
    patched = next(row for row in stored if row.get("correction"))
    path = tmp_path / "results/tune/calibrations" / patched["correction"]["id"]
    assert (path / "adapter.json").is_file()
    use = [word for word in found["use"] if not word.startswith("name=")]
    code, out, err = ulskip("run", *use, "name=again", "speed.enabled=false", "--json")
    assert code == 0, err
    again = json.loads(out.splitlines()[-1])
    if "strategy=full" not in use:
        assert again["kept_layers"] == found["row"]["kept_layers"]
        assert again["decode_loss"] == pytest.approx(found["row"]["decode_loss"])


def test_what_fails_is_left_out_and_chosen_patches_are_those_of_the_last_run(tune, tmp_path):
    patched = "strategy=one_block strategy.budget=2 correction=patch"
    other = "strategy=search strategy.layers=[0,5,11]"  # for another number of layers
    code, found, err = tune("quality=0.001", f"candidates=['{patched}','{other}']", "finalists=1")
    assert code == 0, err
    assert [row["status"] for row in stored_rows(tmp_path / "results/tune")].count("failed") == 1
    assert "search" not in {row["config"]["strategy"]["name"] for row in found["tried"]}
    used = found["row"]["correction"]
    assert used["name"] == "adapter" and used["path"].startswith("results/tune/calibrations/")
    assert f"correction.path=[{used['path']}]" in found["use"] or "strategy=full" in found["use"]


@pytest.mark.slow
def test_an_interrupted_tuning_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(stop):
        settled = []

        class Observer(SweepObserver):
            def job_settled(self, job, record, is_new):
                settled.append(job.id) if is_new else None
                if len(settled) == stop:
                    raise KeyboardInterrupt

        observe = lambda jobs: contextlib.nullcontext(Observer())  # noqa: E731
        tuning = Tuning.of(compose_tuning([*FEW, TWO, "finalists=1", "speedup=1.3"]))
        return tuning.run(observe)

    for stop in (1, 2, 1, 1):
        with contextlib.suppress(KeyboardInterrupt):
            run(stop)
    result, stored = run(99), stored_rows(tmp_path / "results/tune")
    assert len({row["id"] for row in stored}) == len(stored)  # no point is measured twice
    assert set(result.tuning.tried) <= {row["id"] for row in stored}
