import json
import subprocess
import sys

import pytest
import yaml


def test_the_summary_of_a_checkpoint(ulskip, model_folder, tmp_path):
    to = tmp_path / "out"
    code, out, _ = ulskip("export", f"model.path={model_folder}", "ratio=2", "--to", to)
    assert code == 0
    for part in ("3 of 6 layers", f"{to}/prefill", f"{to}/SERVING.md", "--results"):
        assert part in out
    code, out, _ = ulskip(
        "export",
        f"model.path={model_folder}",
        "ratio=3",
        "prompt_layers=kept",
        "--to",
        to,
        "--json",
    )
    assert (code, json.loads(out)["kept_layers"]) == (0, [0, 5])
    assert not (to / "prefill").exists()


def test_a_schedule_and_a_recipe_are_files(ulskip, tmp_path):
    assert ulskip("export", "ratio=3", "--format", "schedule", "--to", tmp_path)[0] == 0
    assert json.loads((tmp_path / "schedule.json").read_text())["kept_layers"] == [0, 4, 7, 11]
    code, out, _ = ulskip(
        "plan", "strategy=custom", f"strategy.file={tmp_path}/schedule.json", "--json"
    )
    assert (code, json.loads(out)["kept_layers"]) == (0, [0, 4, 7, 11])
    assert ulskip("export", "ratio=3", "--format", "mergekit", "--to", tmp_path / "m.yml")[0] == 0
    assert len(yaml.safe_load((tmp_path / "m.yml").read_text())["slices"]) == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--to", "out", "--format", "onnx"], "--format 'onnx'"),
        (["--to", "out", "--shard-size", "big"], "--shard-size"),
        (["--to", "out", "ratio=9"], "ratio"),
        (["--to", "out", "--results", "nowhere"], "--results, got nowhere"),
        (["--to", "mine"], "--to, got mine"),
        (["--to", "mine/file", "--format", "schedule"], "mine/file/schedule.json"),
        ([], "--to"),
    ],
)
def test_bad_requests_are_one_line_and_import_no_torch(tmp_path, arguments, line):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    script = (
        "import sys; from ulskip_cli.cli.app import invoke; code = invoke(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, "export", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 2, told.stderr
    assert line in told.stderr
    assert len(told.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
