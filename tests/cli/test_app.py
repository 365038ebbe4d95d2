import json

import pytest
from report_rows import stored_rows

from ulskip_cli import __version__
from ulskip_cli.core.config_schema import Config


def test_a_sweep_runs_each_point_once(ulskip, overrides, tmp_path):
    grid = ["strategy=full,unified", "ratio=2,3", *overrides]
    assert ulskip("sweep", *grid)[0] == 0
    rows = (tmp_path / "default" / "runs.jsonl").read_text()
    assert len(rows.splitlines()) == 3
    files = {path.name for path in (tmp_path / "default").iterdir()}
    assert {"quality.png", "quality.svg"} <= files
    table = (tmp_path / "default" / "table4.md").read_text()
    assert table.startswith("# ") and "| 2x | unified | 3/6 | " in table
    code, _, err = ulskip("sweep", *grid)
    assert code == 0 and "nothing to run" in err and "--force" in err
    assert (tmp_path / "default" / "runs.jsonl").read_text() == rows


@pytest.mark.slow
def test_bench_compares_engines_and_leaves_tables(ulskip, overrides, tmp_path):
    words = [*overrides, "ratio=2", "batch_size=1,2", "speed.prompt_tokens=4"]
    read = [word for word in words if "bench" in Config.readers(word.partition("=")[0])]
    arguments = ["bench", *read]
    code, out, err = ulskip(*arguments)
    assert code == 0
    for part in ("transformers", "torch", "3/6", f"written to {tmp_path / 'bench'}/"):
        assert part in out
    assert "[6/6] full engine transformers batch size 2: " in err
    files = {path.name for path in (tmp_path / "bench").iterdir()}
    expected = "runs.jsonl table.csv table.md"
    assert files - {".locks"} == {*expected.split()}
    told = json.loads(ulskip(*arguments, "--json")[1].splitlines()[-1])
    points = [(row["batch_size"], row["engine"]) for row in told["rows"]]
    engines = ["torch", *["transformers"] * 2]  # and both full models
    assert points == [(size, engine) for size in (1, 2) for engine in engines]


def test_version_and_env(ulskip):
    assert ulskip("--version")[1] == f"ulskip {__version__}\n"
    assert json.loads(ulskip("env")[1])["ulskip"] == __version__
    assert "instruction_set" in ulskip("env")[1]


def test_train_then_run_what_was_trained(ulskip, model_folder, tmp_path, quick):
    out = tmp_path / "a b"
    options = ["train.ratios=[1,2]", "train.max_steps=2", "train.batch_size=4"]
    options += ["limit=8", "train.max_length=100", f"output={out}"]
    code, text, err = ulskip("train", f"model.path={model_folder}", *options)
    assert code == 0
    assert "4 examples were skipped: longer than train.max_length" in text
    assert "train (2)" in err
    common = [f"model.path={out}", f"results_dir={tmp_path}", *quick]
    outputs = [ulskip("run", "--json", *common, f"ratio={ratio}")[1] for ratio in (2, 3)]
    rows = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert rows[0]["trained_for"]["ratios"] == [1.0, 2.0]
    assert [row["trained_for_these_layers"] for row in rows] == [True, False]
    for words, counts in (("trained for other layers", [0, 1]), ("trained on examples", [1, 1])):
        assert [sum(words in text for text in row["warnings"]) for row in rows] == counts


def test_force_measures_the_baseline_of_a_run_again(ulskip, overrides, tmp_path):
    counts, stored = [], []
    for options in ([], [], ["--force"]):
        code, _, err = ulskip("run", *overrides, *options)
        stored.append("nothing to run" in err)
        assert code == 0
        strategies = [row["strategy"] for row in stored_rows(tmp_path / "default")]
        counts.append(strategies.count("full"))
    assert (counts, stored) == ([1, 1, 2], [False, True, False])


def test_score_gives_the_runs_numbers_and_adds_metrics(ulskip, overrides, tmp_path):
    (line,) = ulskip("run", "--json", *overrides)[1].splitlines()
    run = json.loads(line)
    folder = tmp_path / "default"
    lines = (folder / "runs.jsonl").read_text()
    code, out, _ = ulskip("score", folder)
    assert (code, "2 of 2" in out, f"{folder}/" in out) == (0, True, False)
    assert (folder / "runs.jsonl").read_text() == lines
    out = ulskip("score", folder, "--metric", "exact_match", "--metric", "rouge", "--json")[1]
    full, again = json.loads(out.splitlines()[-1])["rows"]
    added = {"exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    differ = {key for key in again if again[key] != run.get(key)}
    assert differ == {*added, "signatures", "vs_baseline"}
    assert again["vs_baseline"].keys() == {"bleu", "chrf", *added} and not full["vs_baseline"]
    for key in ("signatures", "vs_baseline"):
        assert again[key].items() > run[key].items()
    assert "exact" in (folder / "table.md").read_text()
    err = ulskip("sweep", "strategy=full,unified", *overrides)[2]
    assert "generate" not in err  # the point is still finished
