import json
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ulskip_cli.core.errors import UsageError
from ulskip_cli.export.tensors import INDEX, WEIGHTS, CheckpointReader, shallow_names, write_shards


@pytest.fixture
def tensors():
    floats = {f"h.{i}.w": torch.full((4, 4), float(i)) for i in range(6)}
    return {**floats, "ids": torch.arange(4), "half": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture
def sharded(tensors, tmp_path):
    names = sorted(tensors)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, tmp_path / file)
    weight_map = {name: file for file, chosen in parts.items() for name in chosen}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_tensors_are_found_in_one_file_or_several(tensors, sharded, tmp_path):
    found = CheckpointReader(sharded).read(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    save_file(tensors, tmp_path / WEIGHTS)
    assert set(CheckpointReader(tmp_path).files.values()) == {tmp_path / WEIGHTS}


def test_only_wider_dtypes_are_converted(tensors, sharded):
    reader = CheckpointReader(sharded, torch.bfloat16)
    found = reader.read(tensors)
    assert (found["h.1.w"].dtype, found["ids"].dtype, found["half"].dtype) == (torch.bfloat16, torch.int64, torch.bfloat16)
    shapes = reader.read(tensors, "meta")
    assert {name: (one.shape, one.dtype) for name, one in shapes.items()} == {
        name: (one.shape, one.dtype) for name, one in found.items()
    }
    assert all(one.is_meta for one in shapes.values())
    assert CheckpointReader(sharded, torch.float32).read(["half"])["half"].dtype == torch.bfloat16


def test_one_shard_is_in_memory_at_a_time(tensors, sharded, tmp_path, monkeypatch):
    held, most = [], 0
    real = CheckpointReader.read

    def read(self, names, device="cpu"):
        nonlocal most
        assert not any(reference() is not None for reference in held), "a shard before this one is still there"
        found = real(self, names, device)
        if device != "meta":
            held.extend(weakref.ref(tensor) for tensor in found.values())
            most = max(most, sum(tensor.nbytes for tensor in found.values()))
        return found

    monkeypatch.setattr(CheckpointReader, "read", read)
    (tmp_path / "out").mkdir()
    new_names = {name: f"new.{name}" for name in tensors if name != "h.3.w"}
    written = write_shards(CheckpointReader(sharded), new_names, tmp_path / "out", 130)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 3
    assert most <= 130
    back = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert back.keys() == set(new_names.values())
    assert written.total_bytes == sum(tensor.nbytes for tensor in back.values())
    assert written.parameters == sum(tensor.numel() for tensor in back.values())
    assert set(CheckpointReader(tmp_path / "out").files.values()) == set(files)


def test_a_folder_without_weights_is_refused(tmp_path, sharded):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=WEIGHTS):
        CheckpointReader(tmp_path / "empty")
    (sharded / "b.safetensors").unlink()
    with pytest.raises(UsageError, match=r"b\.safetensors"):
        CheckpointReader(sharded)


OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


@given(st.data())
def test_kept_layers_are_renumbered_and_the_others_dropped(data):
    num_layers = data.draw(st.integers(1, 12))
    kept = sorted(data.draw(st.sets(st.integers(0, num_layers - 1), min_size=1)))
    names = [f"model.layers.{i}.{part}" for i in range(num_layers) for part in ("mlp.experts.7.w", "norm.weight")]
    chosen = shallow_names([*names, *OUTSIDE], num_layers, kept)
    assert set(OUTSIDE) <= chosen.keys()
    for new, old in enumerate(kept):
        assert chosen[f"model.layers.{old}.mlp.experts.7.w"] == f"model.layers.{new}.mlp.experts.7.w"
    assert len(chosen) == len(OUTSIDE) + 2 * len(kept)
    assert len(set(chosen.values())) == len(chosen)


def test_layers_beyond_the_model_and_other_stacks_are_left():
    names = [*(f"model.layers.{i}.w" for i in range(4)), "vision.blocks.0.w", "vision.blocks.1.w"]
    assert shallow_names(names, 3, (0, 2)) == {
        "model.layers.0.w": "model.layers.0.w", "model.layers.2.w": "model.layers.1.w",
        "vision.blocks.0.w": "vision.blocks.0.w", "vision.blocks.1.w": "vision.blocks.1.w",
    }  # fmt: skip


@pytest.mark.parametrize("names", [["a.w"], ["a.0.w", "a.1.w", "b.0.w", "b.1.w"]], ids=["none", "two"])
def test_no_stack_or_two_are_refused(names):
    with pytest.raises(UsageError, match=r"stack of 2 layers"):
        shallow_names(names, 2, (0, 1))
