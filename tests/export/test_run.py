import json
import shlex

import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.export.run import ExportRequest, resolve_export, schedule_text


def test_only_a_schedule_describes_stages(tmp_path):
    stages = compose(["strategy=skip_decode", "strategy.horizon=8"])
    for form in ("hf", "gguf"):
        with pytest.raises(NotApplicable, match=f"--format {form}"):
            resolve_export(stages, ExportRequest(tmp_path / "out", form))
    point = resolve_export(stages, ExportRequest(tmp_path / "out", "schedule"))
    later = json.loads(schedule_text(point))["later_stages"]
    assert later and all(stage["first_step"] and stage["kept_layers"] for stage in later)


def test_the_summary_of_a_checkpoint(ulskip, model_folder, tmp_path):
    to = tmp_path / "out"
    command = ["export", f"model.path={model_folder}", "--to", to]
    code, out, _ = ulskip(*command, "ratio=2")
    assert code == 0
    for part in ("3 of 6 layers", f"{to}/prefill", f"{to}/SERVING.md", "next: ulskip run"):
        assert part in out
    code, out, err = ulskip(*command, "ratio=3", "prompt_layers=kept", "--json")
    assert (code, json.loads(out)["kept_layers"]) == (0, [0, 5])
    assert f"replaces the earlier export {to}" in err
    assert not (to / "prefill").exists()


@pytest.mark.parametrize("kind", ["full", "folded"])
def test_a_schedule_leaves_out_patches_of_every_kind_and_says_so(ulskip, tmp_path, kind):
    patch = ["correction=patch", f"correction.kind={kind}"]
    code, out, err = ulskip("export", "ratio=3", *patch, "--format", "schedule", "--to", tmp_path)
    assert code == 0 and f"without the correction ({kind}" in out, err
    assert json.loads((tmp_path / "schedule.json").read_text())["kept_layers"] == [0, 4, 7, 11]


def test_a_schedule_file_describes_the_point(ulskip, tmp_path):
    file = tmp_path / "s.json"
    point = ["ratio=3", "prompt_layers=kept", "--format", "schedule", "--to", file]
    assert ulskip("export", *point)[0] == 0
    made = json.loads(file.read_text())
    assert list(made)[:4] == ["format", "format_version", "num_layers", "kept_layers"]
    assert (made["format"], made["num_layers"], made["target_ratio"]) == ("ulskip-schedule", 12, 3)
    assert (made["strategy"], made["strategy_options"], made["model"]) == ("unified", {}, "tiny")
    words = ["ulskip", "export", "model=tiny", "task=wmt", "prompt_layers=kept", "ratio=3"]
    assert made["made_by"].endswith(shlex.join(words))
    again = "strategy=custom", f"strategy.layers={made['kept_layers']}"
    code, out, _ = ulskip("plan", *again, "--json")
    assert (code, json.loads(out)["kept_layers"]) == (0, [0, 4, 7, 11])
