import json


def test_force_measures_the_baseline_of_a_run_again(ulskip, overrides, tmp_path):
    counts, stored = [], []
    for options in ([], [], ["--force"]):
        code, _, err = ulskip("run", *overrides, *options)
        stored.append("nothing to run" in err)
        assert code == 0
        rows = map(json.loads, (tmp_path / "default" / "runs.jsonl").read_text().splitlines())
        counts.append(len([row for row in rows if row["strategy"] == "full"]))
    assert (counts, stored) == ([1, 1, 2], [False, True, False])


def test_score_gives_the_runs_numbers_and_adds_a_metric(ulskip, overrides, tmp_path):
    (line,) = ulskip("run", "--json", *overrides)[1].splitlines()
    run = json.loads(line)
    folder = tmp_path / "default"
    lines = (folder / "runs.jsonl").read_text()
    code, out, _ = ulskip("score", folder)
    assert (code, "2 of 2" in out, f"{folder}/" in out) == (0, True, False)
    assert (folder / "runs.jsonl").read_text() == lines
    added = ["--results-dir", tmp_path, "--metric", "ter", "--json"]
    again = json.loads(ulskip("score", run["id"], *added)[1].splitlines()[-1])
    differ = {key for key in again if again[key] != run.get(key)}
    assert differ == {"ter", "signatures", "vs_baseline"}
    assert "TER" in (folder / "table.md").read_text()
    err = ulskip("sweep", "strategy=full,unified", *overrides)[2]
    assert "generate" not in err  # the point is still finished
