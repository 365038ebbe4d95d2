import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from ulskip_cli.errors import UsageError
from ulskip_cli.export.tensors import INDEX, WEIGHTS, Source, write


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
    found = Source(sharded).read({name: name for name in tensors}, None)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    save_file(tensors, tmp_path / WEIGHTS)
    assert set(Source(tmp_path).files.values()) == {tmp_path / WEIGHTS}


def test_only_what_is_wider_is_narrowed(tensors, sharded):
    source = Source(sharded)
    found = source.read({name: name for name in tensors}, torch.bfloat16)
    assert (found["h.1.w"].dtype, found["ids"].dtype, found["half"].dtype) == (torch.bfloat16, torch.int64, torch.bfloat16)
    assert source.sizes(torch.bfloat16) == {name: tensor.nbytes for name, tensor in found.items()}
    assert source.read({"half": "half"}, torch.float32)["half"].dtype == torch.bfloat16


def test_one_shard_is_in_memory_at_a_time(tensors, sharded, tmp_path, monkeypatch):
    held, most = [], 0
    real = Source.read

    def read(self, names, dtype):
        nonlocal most
        assert not any(reference() is not None for reference in held), "a shard before this one is still there"
        found = real(self, names, dtype)
        held.extend(weakref.ref(tensor) for tensor in found.values())
        most = max(most, sum(tensor.nbytes for tensor in found.values()))
        return found

    monkeypatch.setattr(Source, "read", read)
    (tmp_path / "out").mkdir()
    names = {name: f"new.{name}" for name in tensors if name != "h.3.w"}
    written = write(Source(sharded), names, None, tmp_path / "out", 130)
    assert len(written.files) == 3
    assert most <= 130
    back = {name: tensor for file in written.files for name, tensor in load_file(tmp_path / "out" / file).items()}
    assert back.keys() == set(names.values())
    assert written.total_bytes == sum(tensor.nbytes for tensor in back.values())
    assert written.parameters == sum(tensor.numel() for tensor in back.values())
    assert {Source(tmp_path / "out").files[name].name for name in back} == set(written.files)


def test_a_folder_without_weights_is_refused(tmp_path, sharded):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="only safetensors"):
        Source(tmp_path / "empty")
    (sharded / "b.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks b\.safetensors"):
        Source(sharded)
