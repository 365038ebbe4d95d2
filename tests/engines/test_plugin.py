"""An engine in a distribution of its own, which no file of ulskip names."""

import sys
from itertools import product

import pytest
from report_rows import stored_rows

from ulskip_cli.core.config import StoredConfig, compose
from ulskip_cli.core.engines import engine_names

CLASS = """
from typing import ClassVar
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.engines import PLAIN, Engine

class Acme(Engine):
    supports: ClassVar = PLAIN - {Need.SAMPLING}
    formats: ClassVar = {"f32": (32, 32)}

    def session(self):
        from acme_engine.session import AcmeSession

        return AcmeSession
"""
SESSION = """
import torch
from ulskip_cli.engines.base import UNWATCHED
from ulskip_cli.engines.loop import SteppingSession
from ulskip_cli.inference import kv_cache, shallow_view

class AcmeSession(SteppingSession):
    can_shrink = False

    def encode(self, prompts, request, watch=UNWATCHED):
        model, self.stage = self.views.prompt_model, self.views.stages[0]
        self.cache, self.mask = kv_cache.new_cache(model), prompts.attention_mask
        prompt = prompts.input_ids, self.mask
        logits = shallow_view.forward_with_cache(model, *prompt, self.cache, last_only=True)
        kv_cache.prune_cache(self.cache, self.stage.places)
        return logits[:, -1]

    def remove(self, count):
        self.cache.crop(-count)
        self.mask = self.mask[:, :-count]

    def logits(self, tokens):
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], 1)
        view = self.stage.view
        return shallow_view.forward_with_cache(view, tokens, self.mask, self.cache)

    def switch(self, stage):
        self.stage = self.views.stages[stage]
        kv_cache.prune_cache(self.cache, self.stage.places)

    def describe(self):
        return {"package": "acme", "version": "1.0", "weights": "f32"}
"""
PRESET = "_target_: acme_engine.Acme\nname: acme\ndescription: an engine of Acme\n"
FILES = {
    "acme_engine/__init__.py": CLASS,
    "acme_engine/session.py": SESSION,
    "acme_engine/configs/engine/acme.yaml": PRESET,
    "acme-1.0.dist-info/METADATA": "Metadata-Version: 2.4\nName: acme\nVersion: 1.0\n",
    "acme-1.0.dist-info/entry_points.txt": "[ulskip.engines]\nacme = acme_engine:Acme\n",
}
STAGES = ["strategy=skip_decode", "strategy.horizon=4", "ratio=2"]
SMALL = ["limit=4", "max_new_tokens=8", "model.dtype=float32"]
SMALL += ["speed.seconds=0", "speed.new_tokens=6"]


def install(folder, monkeypatch, files=FILES):
    """Write a distribution into a folder, as pip does, and add the folder to the path."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """Install the distribution for one test."""
    install(tmp_path / "site", monkeypatch)
    yield
    for name in [name for name in sys.modules if name.startswith("acme_engine")]:
        del sys.modules[name]


@pytest.mark.usefixtures("acme")
def test_a_sweep_and_its_report_know_an_engine_of_another_distribution(ulskip, tmp_path):
    where = [f"results_dir={tmp_path}", "name=x"]
    code, _, err = ulskip("sweep", "engine=acme,torch", *STAGES, *SMALL, *where)
    assert code == 0, err
    rows = {(row["engine"], row["strategy"]): row for row in stored_rows(tmp_path / "x")}
    assert set(rows) == {*product(("acme", "torch"), ("full", "skip_decode"))}
    for strategy in ("full", "skip_decode"):
        acme, torchs = rows["acme", strategy], rows["torch", strategy]
        assert acme["decode_loss"] == pytest.approx(torchs["decode_loss"], rel=1e-4)
        assert acme["bleu"] == torchs["bleu"]
        assert acme["engine_build"]["package"] == "acme"
    code, out, err = ulskip("report", tmp_path / "x")
    assert code == 0 and "acme" in out, err


@pytest.mark.usefixtures("acme")
def test_an_engine_that_defines_check_has_look_ups(ulskip, tmp_path):
    lookup = ["decoding=prompt_lookup", "decoding.draft_tokens=3", "batch_size=1"]
    longer = [*SMALL, "max_new_tokens=48"]  # so that it repeats itself
    code, _, err = ulskip("run", "engine=acme", *lookup, *longer, f"results_dir={tmp_path}")
    assert code == 0, err
    full, drafted = sorted(stored_rows(tmp_path / "default"), key=lambda row: row["draft_tokens"])
    assert (full["engine"], drafted["engine"]) == ("acme", "acme")
    assert drafted["mean_draft_length"] > 0 and drafted["bleu"] == full["bleu"]
    folder = tmp_path / "default" / "generations"
    answers = [(folder / f"{row['id']}.jsonl").read_text() for row in (full, drafted)]
    assert answers[0] == answers[1]


def test_an_engine_that_is_not_installed_is_refused_but_its_rows_are_read(ulskip):
    code, _, err = ulskip("plan", "engine=acme")
    assert code == 2 and "acme" in err
    assert "acme" not in engine_names()
    stored = {**compose([]).recorded(), "engine": {"_target_": "acme_engine.Acme", "name": "acme"}}
    engine = StoredConfig.read(stored).engine
    assert engine.decodes_outside_torch and engine.formats == {}


def test_an_engine_whose_import_fails_is_refused_in_one_line_and_hinders_no_other(
    ulskip, tmp_path, monkeypatch
):
    broken = {"acme_engine/__init__.py": "raise OSError('no library')"}
    install(tmp_path, monkeypatch, FILES | broken)
    code, _, err = ulskip("plan", "engine=acme")
    assert code == 2 and "no library" in err
    assert ulskip("run", "baseline_engine=acme")[0] == 2
    code, _, err = ulskip("plan", "engine=torch", "decoding=beam")
    assert code == 2 and "decoding.num_beams=1" in err
