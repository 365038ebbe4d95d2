import json

import pytest
from reference import save_adapter
from report_rows import run_rows

from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.inference.loading import load
from ulskip_cli.inference.patch_fit import PatchFitter
from ulskip_cli.inference.skip_adapter import zero_adapter


@pytest.fixture
def config(overrides):
    def make(*changes):
        small = ["calibration.examples=6", "speed.enabled=false", "model.device=cpu"]
        return compose([*overrides, *small, *changes])

    return make


@pytest.mark.parametrize("kind", PATCHES)
def test_patches_are_stored_recorded_and_used_again(config, tmp_path, monkeypatch, kind):
    half = config("ratio=2", "correction=patch", f"correction.kind={kind}")
    full, row = run_rows(half)
    folder = tmp_path / "default" / "calibrations" / row["correction"]["id"]
    assert row["correction"]["kind"] == kind and "correction" not in full
    assert row["correction"]["ridge"] > 0
    assert (row["correction"]["bytes"] > 0) == PATCHES[kind].has_module
    assert row["correction"]["base"]["fingerprint"] == ModelFolder(half.model).fingerprint
    assert json.loads((folder / "adapter.json").read_text())["kept_sets"] == [row["kept_layers"]]
    saved = (folder / "adapter.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(PatchFitter, "fit", lambda *args: pytest.fail("measured again"))
    again = run_rows(half.replace(batch_size=2))[-1]
    assert again["correction"] == row["correction"]
    assert again["decode_loss"] == pytest.approx(row["decode_loss"])
    assert (folder / "adapter.safetensors").stat().st_mtime_ns == saved


@pytest.fixture
def adapter(config, tmp_path):
    """A stored skip adapter of the model, for the layers of ratio=2."""
    model = config().model
    found = zero_adapter(load(model).model, [(0, 2, 5)], PATCHES["full"])
    for tensor in found.tensors().values():
        tensor.fill_(0.3)
    return save_adapter(found, model, tmp_path / "adapter")


def test_the_full_model_has_one_row_with_and_without_a_skip_adapter(config, adapter, tmp_path):
    given = ["correction=adapter", f"correction.path={adapter}"]
    plain = run_rows(config("ratio=2", "name=plain"))
    corrected = run_rows(config("ratio=2", "name=corrected", *given))
    assert plain[0]["id"] == corrected[0]["id"]
    assert plain[-1]["id"] != corrected[-1]["id"]
    file = f"generations/{plain[0]['id']}.jsonl"
    assert (tmp_path / "plain" / file).read_text() == (tmp_path / "corrected" / file).read_text()
    (full,) = run_rows(config("strategy=full", "name=full", *given))
    warned = [str(row["warnings"]).count("has no effect with") for row in (full, corrected[-1])]
    assert warned == [1, 0]


def test_a_search_with_patches_depends_on_their_fit(config):
    searched = ["strategy=search", "correction=patch", "strategy.budget=3", "ratio=2"]
    kinds = [f"correction.kind={kind}" for kind in ("full", "folded")]
    rows = [run_rows(config(*searched, kind))[-1] for kind in kinds]
    assert rows[0]["id"] != rows[1]["id"]
    assert rows[0]["calibration"]["id"] != rows[1]["calibration"]["id"]
    assert rows[0]["calibration"]["notes"]["tried"] == 3


def test_other_layers_are_refused(config, adapter):
    with pytest.raises(UsageError, match=r"correction\.path.*\[0,2,5\].*\[0,5\]"):
        run_rows(config("ratio=3", "correction=adapter", f"correction.path={adapter}"))
