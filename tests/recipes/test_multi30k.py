import json
import sys
from pathlib import Path

import pytest
from recipe import RECIPES, load_recipe
from report_rows import COMMON

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
    common = {"status": "done", "strategy": "search", "target_speedup": 6.0, "batch_size": 1}
    common |= {"num_layers": 12, "layer_ratio": 6.0}
    patch = {"correction": {"name": "patch", "kind": "full"}}
    found = [
        ("base", [0, 7], {}),
        ("base", [0, 8], {}),
        ("base", [0, 9], patch),
        ("other", [0, 4], {}),
    ]
    rows = [
        {**common, "id": f"p{i}", "model": f"runs/{model}", "kept_layers": kept, **more}
        for i, (model, kept, more) in enumerate(found)
    ]
    (tmp_path / "results" / "multi30k").mkdir(parents=True)
    (tmp_path / "results" / "multi30k" / "runs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    assert reproduce.Reproduction(Path("runs")).found(6) == [0, 8]


def test_an_adapter_is_evaluated_on_the_base_and_on_both_test_sets(commands):
    train, *evaluations = commands("--only", "adapter-unified-2x-s1")
    base, folder = "model.path=runs/multi30k/base", "runs/multi30k/adapter-unified-2x-s1"
    assert {base, "train=adapter", f"output={folder}"} <= set(train)
    for command, test in zip(evaluations, ("test", "test_2017_flickr"), strict=True):
        source = f"task.source_file=runs/multi30k/data/{test}.de"
        assert {base, f"correction.path={folder}", source, "ratio=2"} <= set(command)


REFERENCES = [
    f"a {colour} dog runs over the {place} with a ball"
    for colour in ("red", "blue", "black")
    for place in ("grass", "road")
]
ENDS = [text[:20] for text in REFERENCES]
# strategy, target, hypotheses on test_2016_flickr and test_2017_flickr, further keys
ADAPTER = {"correction": {"name": "adapter", "path": "runs/adapter-unified-2x-s1"}}
CHECKPOINTS = {
    "base": ("full", 1.0, REFERENCES, REFERENCES, {}),
    "full-1x-s1": ("full", 1.0, REFERENCES, ENDS, {}),
    "unified-2x-s1": ("unified", 2.0, REFERENCES, REFERENCES, {}),
    "top_skip-2x-s1": ("top_skip", 2.0, ENDS, REFERENCES, {}),
    "bottom_skip-2x-s1": ("bottom_skip", 2.0, ENDS, ENDS, {}),
    "adapter-unified-2x-s1": ("unified", 2.0, REFERENCES, ENDS, ADAPTER),
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
        **COMMON,
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
        "decode_loss": 1.0,
        "pair": "de-en",
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
    (matching,) = [line for line in page.splitlines() if line.startswith(begin)]
    return matching


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
