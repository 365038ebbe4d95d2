import json

import pytest
from reference import hf

from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import PATCHES, Adapter, read_record
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelFolder, ModelMetadata
from ulskip_cli.core.weight_sizes import WeightSizes
from ulskip_cli.strategies.plan import make_plan


@pytest.fixture
def model(model_folder):
    return hf(model_folder)


@pytest.fixture
def write(model, tmp_path):
    """Return a function that writes the record of a skip adapter and returns its folder."""

    def written(name="adapter", **changes):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        base = {"fingerprint": ModelFolder(model).fingerprint}
        record = {"base": base, "kept_sets": [[0, 5]], "kind": "full", **changes}
        (folder / "adapter.json").write_text(json.dumps(record))
        return folder

    return written


@pytest.mark.parametrize(
    "change", [{"kept_sets": 7}, {"kept_sets": [0, 1]}, {"base": "x"}, {"kind": "other"}]
)
def test_a_damaged_record_is_refused_by_its_key(model, write, change):
    with pytest.raises(UsageError, match=rf"{next(iter(change))}.*adapter\.json"):
        read_record(write(**change), model)


def test_a_record_of_another_model_is_refused(model, write):
    assert read_record(write(), model).kept_sets == ((0, 5),)
    with pytest.raises(UsageError, match="model"):
        read_record(write(base={"fingerprint": "other"}), model)


def test_the_folder_is_the_one_of_the_layers(model, write):
    folders = [write("a"), write("b", kept_sets=[[0, 2, 5]])]
    adapter = Adapter(path=tuple(map(str, folders)))
    assert adapter.folder_for(model, [(0, 2, 5)]) == str(folders[1])
    assert adapter.folder_for(model, []) is None
    with pytest.raises(UsageError, match=r"\[0,5\] or \[0,2,5\]"):
        adapter.folder_for(model, [(0, 1)])


def test_adapters_of_different_kinds_are_refused(model, write):
    one, other = write("a", kind="folded"), write("b")
    assert Adapter(path=(str(one),)).patch_kind(model) is PATCHES["folded"]
    with pytest.raises(UsageError, match="folded and full"):
        Adapter(path=(str(one), str(other))).patch_kind(model)


METADATA = ModelMetadata(6, None, WeightSizes(50, (100,) * 6), hidden_size=3, weight_bytes=2)


def predicted(*overrides):
    config = compose(["strategy=custom", "strategy.layers=[0,2,5]", *overrides])
    return make_plan(config, METADATA).predicted_speedup


def test_the_predicted_speedup_counts_the_patch_of_each_gap():
    folded = predicted("correction=patch", "correction.kind=folded")
    assert predicted() == folded == pytest.approx(650 / 350)
    patch = 2 * (3 * 3 + 3)  # bytes
    assert predicted("correction=patch") == pytest.approx(650 / (350 + 2 * patch))
