import errno
import json
import os
import shlex
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.export.checkpoint import source_license
from ulskip_cli.export.export_run import (
    ExportRequest,
    resolve_export,
    schedule_text,
    staged,
    write_record,
)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\ntags:\n- a\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("# No metadata", None),
        ("---\nlicense: caf\xe9\n---\n", None),
        (None, None),
    ],
)
def test_the_license_comes_from_the_sources_card(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "README.md").write_text(text, "latin-1")
    assert source_license(tmp_path) == expected


def write_export(folder, text="weights"):
    with staged(folder, is_folder=True) as staging:
        (staging / "model").write_text(text)
        write_record(staging, {})


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_complete_export_replaces_an_earlier_one_and_a_failed_one_does_not(tmp_path, error):
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    for text in ("weights", "newer"):
        write_export(out, text)
    with pytest.raises(error), staged(out, is_folder=True) as staging:
        (staging / "model").write_text("half")
        raise error
    assert (out / "model").read_text() == "newer"
    assert json.loads((out / "ulskip_export.json").read_text())["files"] == ["model"]
    assert names(tmp_path) == ["deep", "deep/out", "deep/out/model", "deep/out/ulskip_export.json"]


def test_an_earlier_export_is_kept_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    write_export(tmp_path / "out", "weights")
    monkeypatch.setattr(Path, "replace", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input"):
        write_export(tmp_path / "out", "newer")
    assert (tmp_path / "out" / "model").read_text() == "weights"
    assert names(tmp_path) == ["out", "out/model", "out/ulskip_export.json"]


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_target_that_cannot_be_written_is_refused(tmp_path, is_folder):
    (tmp_path / "file").write_text("")
    to = tmp_path / "file" / "out"
    with pytest.raises(UsageError, match=f"cannot write to --to {to}"), staged(to, is_folder):
        pass
    assert names(tmp_path) == ["file"]


def test_a_folder_with_other_files_is_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for prepare in (lambda: None, lambda: write_export(out)):
        prepare()
        (out / "thesis").write_text("x")
        with pytest.raises(UsageError, match=f"--to, got {out} with thesis"):
            write_export(out)
        (out / "thesis").unlink()
    with pytest.raises(UsageError, match=f"--to.* folder {out}"), staged(out, is_folder=False):
        pass


def test_a_file_replaces_only_an_earlier_export(tmp_path):
    file = tmp_path / "s.json"
    for text in ("ulskip 1", "ulskip 2"):
        with staged(file, is_folder=False) as staging:
            staging.write_text(text)
    assert file.read_text() == "ulskip 2" and names(tmp_path) == ["s.json"]
    file.write_text("mine")
    for is_folder in (True, False):
        with pytest.raises(UsageError, match=f"--to.*{file}"), staged(file, is_folder):
            pass


def test_nothing_is_written_into_a_folder_that_was_prepared(tmp_path):
    (tmp_path / "victim").mkdir()
    prepared = tmp_path / f".out.{os.getpid()}.ulskip-part"
    prepared.symlink_to(tmp_path / "victim")
    with staged(tmp_path / "out", is_folder=True) as staging:
        assert staging.parent != prepared and staging.parent.stat().st_mode & 0o077 == 0
        (staging / "model").write_text("weights")
    assert (tmp_path / "out").stat().st_mode & 0o777 == (tmp_path / "victim").stat().st_mode & 0o777
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.parametrize("name", ["out", "a [1] b"])
def test_what_a_killed_export_left_is_removed_but_not_that_of_a_running_one(tmp_path, name):
    with staged(tmp_path / name, is_folder=True) as running:
        ended = subprocess.Popen(["true"])
        ended.wait()
        left = running.parent.name.replace(str(os.getpid()), str(ended.pid))
        (tmp_path / left / name).mkdir(parents=True)
        (tmp_path / "victim").mkdir()
        (tmp_path / "victim" / "file").write_text("mine")
        prepared = tmp_path / left.replace(".ulskip-part", "x.ulskip-part")
        prepared.symlink_to(tmp_path / "victim")
        with pytest.raises(RuntimeError), staged(tmp_path / name, is_folder=True):
            raise RuntimeError
        assert (tmp_path / left).exists()  # it can hold the earlier export
        write_export(tmp_path / name)
        assert running.is_dir() and not (tmp_path / left).exists()
        assert (tmp_path / "victim" / "file").read_text() == "mine"
