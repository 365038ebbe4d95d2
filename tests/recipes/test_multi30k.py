import sys

import pytest
from recipe import RECIPES, load_recipe
from report_rows import sweep_row

from ulskip_cli.experiments.results import ResultsFolder

COLOURS = ("red", "blue", "black", "brown", "white", "grey")
REFERENCES = [f"a {colour} dog runs over the grass with a ball" for colour in COLOURS]
ENDS = [text[:20] for text in REFERENCES]
# strategy, target, hypotheses on test_2016_flickr and test_2017_flickr, further keys
ADAPTER = {"correction": {"name": "adapter", "path": "runs/adapter-unified-2x-reference-s1"}}
CHECKPOINTS = {
    "base": ("full", 1.0, REFERENCES, REFERENCES, {}),
    "full-1x-s1": ("full", 1.0, REFERENCES, ENDS, {}),
    "unified-2x-s1": ("unified", 2.0, REFERENCES, REFERENCES, {}),
    "top_skip-2x-s1": ("top_skip", 2.0, ENDS, REFERENCES, {}),
    "bottom_skip-2x-s1": ("bottom_skip", 2.0, ENDS, ENDS, {}),
    "adapter-unified-2x-reference-s1": ("unified", 2.0, REFERENCES, ENDS, ADAPTER),
    "patched": ("unified", 2.0, ENDS, ENDS, {"correction": {"name": "patch", "kind": "full"}}),
}


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES / "multi30k")
    yield load_recipe("multi30k/report.py")
    for name in ("rows", "tables"):
        sys.modules.pop(name)


def write_row(folder, checkpoint, link, strategy, target, hypotheses, more):
    path = f"runs/{'base' if 'correction' in more else checkpoint}"
    config = {"speed": {"enabled": False}, "model": {"name": "hf", "source": "hf", "path": path}}
    config["task"] = {"name": "wmt", "source_file": f"data/{link}.de"}
    layers = {"num_layers": 12, "kept_layers": list(range(int(12 / target)))}
    values = {"id": f"{checkpoint}-{link}"}
    values |= {"num_examples": len(REFERENCES), "layer_ratio": target, **layers, **more}
    row = sweep_row(strategy, target, batch=64, config=config, **values)
    row = row.replace(bleu=20.0 if hypotheses == ENDS else 100.0, measured_speedup=None)
    texts = [
        {"source": "x", "hypothesis": hypothesis, "reference": reference}
        for hypothesis, reference in zip(hypotheses, REFERENCES, strict=True)
    ]
    ResultsFolder(folder).append(row)
    ResultsFolder(folder).save_generations(row.id, texts)


@pytest.fixture
def results(tmp_path):
    """Rows of a contest in which unified copies the references of both test sets and others lose
    some of their ends.
    """
    for checkpoint, (strategy, target, first, second, more) in CHECKPOINTS.items():
        for link, hypotheses in (("test_2016_flickr", first), ("test_2017_flickr", second)):
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
    adapter = rows.tuned("unified", 2.0, prefix="adapter-", variant="-reference")
    assert f"| {adapter.bleu:.1f} | {adapter.bleu:.1f}% |" in line(
        page, "| 2x | adapter, two epochs |"
    )


def test_the_page_is_made_again_without_generations(results, report):
    report.write(results)
    first = (results / "README.md").read_text()
    for file in (results / "generations").iterdir():
        file.unlink()
    report.write(results)
    assert (results / "README.md").read_text() == first
