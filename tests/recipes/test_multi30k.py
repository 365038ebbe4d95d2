import json
import sys
from pathlib import Path

import pytest
from recipe import RECIPES, load_recipe

from ulskip_cli.core.config import compose_training
from ulskip_cli.strategies.training_schedules import schedules

reproduce = load_recipe("multi30k/reproduce.py")
ADAPTERS = [one for seed in (1, 2, 3) for one in reproduce.adapters(seed)]
EVERY = [
    *reproduce.contest(1),
    *reproduce.equal_budget(1),
    *reproduce.contest(2),
    *reproduce.contest(3),
    *ADAPTERS,
]


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_every_training_composes_and_keeps_what_its_name_says(one):
    ratios = ",".join(map(str, one.ratios))
    strategy = [f"strategy={one.strategy}"]
    if one.strategy == "search":  # keeps what it found on the base
        strategy.append(f"strategy.layers={list(range(12 // one.ratios[0]))}")
    config = compose_training(
        [*one.recipe, *strategy, f"train.ratios=[{ratios}]", f"seed={one.seed}"]
    )
    assert (config.train.method == "adapter") == one.name.startswith("adapter-")
    trained = schedules(config, 12)
    assert list(trained) == list(one.ratios)
    if one.strategy not in ("skip_decode", "early_exit"):  # their depth varies
        assert [len(stage.kept_layers) for (stage,) in trained.values()] == [
            12 // ratio for ratio in one.ratios
        ]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Return a function that runs the recipe and returns its commands, with the layers that search
    found already.
    """
    monkeypatch.chdir(tmp_path)
    called = []
    monkeypatch.setattr(reproduce, "call", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(reproduce.Reproduction, "found", lambda self, ratio: [0, 8])

    def run(*arguments):
        called.clear()
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--data", str(tmp_path), *arguments])
        reproduce.main()
        return (
            called[1:] if called[0][0] == "train" else called
        )  # the first command trains the base, unless it times

    return run


def test_search_trains_what_it_found_on_the_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "id": f"p{i}",
            "status": "done",
            "model": model,
            "strategy": "search",
            "target_speedup": 6.0,
            "batch_size": 1,
            "kept_layers": kept,
            "num_layers": 12,
            "layer_ratio": 6.0,
            **more,
        }
        for i, (model, kept, more) in enumerate(
            [
                ("runs/base", [0, 7], {}),
                ("runs/base", [0, 8], {}),
                ("runs/base", [0, 9], {"correction": {"name": "patch", "kind": "full"}}),
                ("runs/other", [0, 4], {}),
            ]
        )
    ]
    (tmp_path / "results" / "multi30k").mkdir(parents=True)
    (tmp_path / "results" / "multi30k" / "runs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    assert reproduce.Reproduction(Path("runs")).found(6) == [0, 8]


def test_an_adapter_is_evaluated_on_the_base_and_on_both_test_sets(commands):
    train, *evaluations = commands("--only", "adapter-unified-2x-s1")
    assert {
        "model.path=runs/multi30k/base",
        "train=adapter",
        "output=runs/multi30k/adapter-unified-2x-s1",
    } <= set(train)
    for command, test in zip(evaluations, ("test", "test_2017_flickr"), strict=True):
        adapter = "correction.path=runs/multi30k/adapter-unified-2x-s1"
        source = f"task.source_file=runs/multi30k/data/{test}.de"
        assert {"model.path=runs/multi30k/base", adapter, source, "ratio=2"} <= set(command)


def test_patches_alone_train_nothing(commands):
    called = commands("--only", "patches")
    assert {command[0] for command in called} == {"sweep"}
    patched = [command for command in called if "correction=patch" in command]
    assert len(patched) == 2 * 5
    assert all(
        "strategy.layers=[0, 8]" in command for command in patched if "strategy=search" in command
    )


REFERENCES = [
    f"a {colour} dog runs over the {place} with a ball"
    for colour in ("red", "blue", "black")
    for place in ("grass", "road")
]
ENDS = [text[:20] for text in REFERENCES]
# strategy, target, hypotheses on test_2016_flickr and test_2017_flickr, further keys
CHECKPOINTS = {
    "base": ("full", 1.0, REFERENCES, REFERENCES, {}),
    "full-1x-s1": ("full", 1.0, REFERENCES, ENDS, {}),
    "unified-2x-s1": ("unified", 2.0, REFERENCES, REFERENCES, {}),
    "top_skip-2x-s1": ("top_skip", 2.0, ENDS, REFERENCES, {}),
    "bottom_skip-2x-s1": ("bottom_skip", 2.0, ENDS, ENDS, {}),
    "adapter-unified-2x-s1": (
        "unified",
        2.0,
        REFERENCES,
        ENDS,
        {"correction": {"name": "adapter", "path": "runs/adapter-unified-2x-s1"}},
    ),
    "patched": ("unified", 2.0, ENDS, ENDS, {"correction": {"name": "patch", "kind": "full"}}),
}


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES / "multi30k")
    yield load_recipe("multi30k/report.py")
    for name in ("rows", "tables"):
        sys.modules.pop(name)


def write_row(folder, checkpoint, link, strategy, target, hypotheses, more):
    row = {
        "id": f"{checkpoint}-{link}",
        "status": "done",
        "strategy": strategy,
        "target_speedup": target,
        "batch_size": 64,
        "model": "runs/base",
        "config": {"speed": {"enabled": False}, "task": {"source_file": f"data/{link}.de"}},
        "num_layers": 12,
        "kept_layers": list(range(int(12 / target))),
        "num_examples": len(REFERENCES),
        "predicted_speedup": target,
        "layer_ratio": target,
        "training": "somehow",
        "bleu": 20.0 if hypotheses == ENDS else 100.0,
        "dtype": "float32",
        "decode_loss": 1.0,
        "pair": "de-en",
        "environment": {
            "git_commit": "c",
            "processor": "p",
            "threads": 1,
            "instruction_set": "i",
            "accelerator": None,
            "ulskip": "0",
            "packages": {"torch": "t", "transformers": "f"},
        },
        **(more or {"model": f"runs/{checkpoint}"}),
        **more,
    }
    with (folder / "runs.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    texts = [
        {"source": "x", "hypothesis": h, "reference": r}
        for h, r in zip(hypotheses, REFERENCES, strict=True)
    ]
    (folder / "generations").mkdir(exist_ok=True)
    file = folder / "generations" / f"{checkpoint}-{link}.jsonl"
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))


@pytest.fixture
def results(tmp_path):
    """Rows of a contest in which unified copies the references of both test sets and others lose
    some of their ends.
    """
    for checkpoint, (strategy, target, first, second, more) in CHECKPOINTS.items():
        for link, hypotheses in (("test", first), ("test_2017_flickr", second)):
            write_row(tmp_path, checkpoint, link, strategy, target, hypotheses, more)
    return tmp_path


def line(page, begin):
    (found,) = [one for one in page.splitlines() if one.startswith(begin)]
    return found


def test_the_page_says_what_the_intervals_say(results, report):
    report.write(results)
    page = (results / "README.md").read_text()
    assert (results / "quality.png").is_file()
    rows = report.Rows(results)
    control = rows.full_models["control"]
    assert rows.better == ("base", pytest.approx(100)) and 20 < control < 90
    assert f"| 100.0 | 100.0 | 100.0 | {100 / control:.1%} | 100.0% |" in line(
        page, "| 2x | unified | 6/12 |"
    )
    claim = line(page, "- 2x, unified against bottom skip")
    assert "**holds**" in claim and "100.0" in claim
    assert f"{100 - rows.bleu('top_skip', 2.0):+.1f}" in line(
        page, "- 2x, unified against top skip"
    )
    assert "100.0% at 2x" in line(page, "- Unified keeps")


def test_a_claim_that_another_seed_contradicts_is_undecided(results, report):
    for checkpoint, strategy, hypotheses in (
        ("unified-2x-s2", "unified", ENDS),
        ("bottom_skip-2x-s2", "bottom_skip", REFERENCES),
    ):
        for link in ("test", "test_2017_flickr"):
            write_row(results, checkpoint, link, strategy, 2.0, hypotheses, {})
    report.write(results)
    assert "is undecided" in line(
        (results / "README.md").read_text(), "- 2x, unified against bottom skip"
    )


def test_adapters_are_compared_with_fine_tuning_and_keep_the_base_at_1x(results, report):
    rows = report.Rows(results)
    table = report.adapters(rows)
    cells = line(table, "| 2x | unified | adapter, greedy answers |").split(" | ")
    assert cells[3:5] == ["100.0", "20.0"] and cells[9] == "100.0"
    assert cells[8].startswith(
        f"{rows.full_models['control'] - 100:+.1f}"
    )  # its hypotheses are those of the control
    assert line(table, "| 2x | unified | fine-tuned |").split(" | ")[8:10] == ["–", "–"]
    assert line(table, "| 2x | unified | patches alone |").split(" | ")[3:5] == ["20.0", "20.0"]


def test_the_page_is_made_again_without_generations(results, report):
    report.write(results)
    first = (results / "README.md").read_text()
    for file in (results / "generations").iterdir():
        file.unlink()
    report.write(results)
    assert (results / "README.md").read_text() == first
    (results / "comparisons.json").unlink()
    data = results / "data"
    data.mkdir()
    for test in ("test_2016_flickr", "test_2017_flickr"):
        (data / f"{test}.en").write_text("\n".join(REFERENCES) + "\n")
    report.write(results, data)
    assert (results / "README.md").read_text() == first
