import json
from pathlib import Path

import pytest
from recipe import load_recipe

from ulskip_cli.core.config import compose_training
from ulskip_cli.strategies.training_schedules import schedules

reproduce = load_recipe("multi30k/reproduce.py")
EVERY = [*reproduce.contest(1), *reproduce.options(), *reproduce.contest(2), *reproduce.contest(3)]


def test_every_checkpoint_has_a_name_of_its_own():
    names = [one.name for one in EVERY]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_every_training_composes_and_keeps_what_its_name_says(one):
    ratios = ",".join(map(str, one.ratios))
    strategy = [f"strategy={one.strategy}"]
    if one.strategy == "search":  # keeps what it found on the base
        strategy.append(f"strategy.layers={list(range(12 // one.ratios[0]))}")
    config = compose_training([*reproduce.FINE_TUNE, *strategy, f"train.ratios=[{ratios}]", f"seed={one.seed}", *one.options])
    trained = schedules(config, 12)
    assert list(trained) == list(one.ratios)
    if one.strategy not in ("skip_decode", "early_exit"):  # their depth varies
        assert [len(stage.kept_layers) for (stage,) in trained.values()] == [12 // ratio for ratio in one.ratios]


def test_all_get_the_same_budget_in_the_contest():
    assert {one.options for seed in (1, 2, 3) for one in reproduce.contest(seed)} == {()}
    assert {one.strategy for one in reproduce.contest(1)} == {
        "full", "unified", "top_skip", "bottom_skip", "skip_decode", "early_exit", "search"
    }  # fmt: skip


def test_search_trains_what_it_found_on_the_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": str(kept), "model": model, "strategy": "search", "target_speedup": 6.0, "kept_layers": kept}
        for model, kept in (("runs/base", [0, 8]), ("runs/other", [0, 4]))
    ]
    (tmp_path / "results" / "multi30k").mkdir(parents=True)
    (tmp_path / "results" / "multi30k" / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert reproduce.searched(Path("runs/base"), 6) == [0, 8]


REFERENCES = [
    f"a {colour} dog runs over the {place} with a ball" for colour in ("red", "blue", "black") for place in ("grass", "road")
]


@pytest.fixture
def results(tmp_path):
    """Make rows in which the answers of unified equal the references and those of top_skip lack the last words."""
    answers = {"full": REFERENCES, "unified": REFERENCES, "top_skip": [text[:20] for text in REFERENCES]}
    rows = []
    for strategy, hypotheses in answers.items():
        target = 1.0 if strategy == "full" else 2.0
        name = f"{strategy}-{target:g}x-s1"
        row = {
            "id": name, "model": f"runs/{name}", "strategy": strategy, "target_speedup": target, "batch_size": 64,
            "config": {"speed": {"enabled": False}}, "kept_layers": list(range(int(12 / target))), "num_layers": 12,
            "num_examples": len(REFERENCES), "predicted_speedup": target, "layer_ratio": target, "training": "somehow",
            "bleu": 100.0 if strategy != "top_skip" else 20.0, "dtype": "float32", "pair": "de-en",
            "environment": {"git_commit": "c", "processor": "p", "threads": 1, "instruction_set": "i", "accelerator": None,
                            "ulskip": "0", "packages": {"torch": "t", "transformers": "f"}},
        }  # fmt: skip
        rows.append(json.dumps(row))
        texts = [{"source": "x", "hypothesis": h, "reference": r} for h, r in zip(hypotheses, REFERENCES, strict=True)]
        (tmp_path / "generations").mkdir(exist_ok=True)
        (tmp_path / "generations" / f"{name}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    (tmp_path / "runs.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_the_page_says_what_the_intervals_say(results):
    report = load_recipe("multi30k/report.py")
    page = report.page(report.Rows(results), results)
    assert "| 2x | unified | 6/12 | – | 100.0 | 100.0% | – |" in page
    assert "At 2x, the claim against top skip **held**: 100.0 against" in page
    assert "bottom skip **" not in page
    report.plot(report.Rows(results), results / "quality")
    assert (results / "quality.png").is_file()


def test_the_page_is_made_again_without_the_texts(results):
    report = load_recipe("multi30k/report.py")
    report.write(results)
    first = (results / "README.md").read_text()
    for file in (results / "generations").iterdir():
        file.unlink()
    report.write(results)
    assert (results / "README.md").read_text() == first
