"""Copy weights from the safetensors of one checkpoint to another, with one shard in memory at a time.

`save_pretrained` would convert a checkpoint with several dtypes to one and require the whole model in memory.
"""

import contextlib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.progress import NullProgress, ReportProgress
from ulskip_cli.core.typed_json import load_object, parse

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_SAMPLE_BYTES = 1024
_LAYER = re.compile(r"^((?:[^.]+\.)*?)(\d+)\.")  # the outermost number, because experts have numbers inside a layer


@dataclass(frozen=True)
class WrittenWeights:
    """The size of a written checkpoint."""

    parameters: int  # elements of all tensors
    total_bytes: int


class TensorReader(Protocol):
    """Tensors by name, from the files of a checkpoint."""

    files: dict[str, Path]  # of each tensor

    def read(self, names: Iterable[str], device: str = "cpu") -> dict[str, Tensor]:
        """Return tensors by name; tensors on the device `meta` have only shapes and dtypes."""


@dataclass(frozen=True)
class _Index:
    """The index of a checkpoint of several files."""

    weight_map: dict[str, str]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raise UsageError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(
            f"expected {path} to be a safetensors file, got an error: {reason}; copy the checkpoint again"
        ) from None


class CheckpointReader:
    """The tensors of a checkpoint by name, read on demand and converted to a narrower dtype."""

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Find the safetensors files; floating-point tensors wider than `dtype` are read as `dtype`."""
        self.dtype = dtype
        self.files: dict[str, Path]
        if (folder / WEIGHTS).is_file():
            with _opened(folder / WEIGHTS) as file:
                self.files = dict.fromkeys(file.keys(), folder / WEIGHTS)
        elif (folder / INDEX).is_file():
            index = parse(load_object(folder / INDEX, "the index of weights"), _Index, folder / INDEX)
            self.files = {name: folder / Path(file).name for name, file in index.weight_map.items()}
        else:
            raise UsageError(f"expected {WEIGHTS} or {INDEX} in {folder}, got neither; convert the model with save_pretrained")
        missing = sorted({file.name for file in self.files.values() if not file.is_file()})
        if missing:
            raise UsageError(f"expected {missing[0]} in {folder}, as in {INDEX}, got no such file; use a complete checkpoint")

    def read(self, names: Iterable[str], device: str = "cpu") -> dict[str, Tensor]:
        """Return tensors by name, from as many files as needed."""
        by_file: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            by_file[self.files[name]].append(name)
        tensors: dict[str, Tensor] = {}
        for path, found in by_file.items():
            with _opened(path) as file:  # maps the file, so that only used pages are read
                tensors |= {name: self._narrow(file.get_tensor(name).to(device)) for name in found}
        return tensors

    def _narrow(self, tensor: Tensor) -> Tensor:
        """Convert a tensor that is wider than `dtype`; from_pretrained widens narrower tensors without loss."""
        if self.dtype is None or not tensor.is_floating_point() or tensor.element_size() <= self.dtype.itemsize:
            return tensor
        return tensor.to(self.dtype)


def write_shards(
    reader: TensorReader,
    new_names: Mapping[str, str],
    folder: Path,
    max_shard_bytes: int,
    begin: Callable[[int], ReportProgress] = lambda total: NullProgress().phase("", total),
) -> WrittenWeights:
    """Write the tensors in `new_names` (old to new names) as one safetensors file, or as several files with an index.

    A file exceeds `max_shard_bytes` only if it contains a single tensor. `begin` gets the number of files, and returns a
    function that gets the number of written files.
    """
    shapes = reader.read(new_names, "meta")
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=max_shard_bytes)
    update = begin(len(split.filename_to_tensors))
    for number, (file, names) in enumerate(split.filename_to_tensors.items(), start=1):
        tensors = reader.read(names)
        save_file({new_names[name]: tensors.pop(name) for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(folder.stat().st_mode & 0o666)  # safetensors creates files that only their owner can read
        update(number)
    written = WrittenWeights(sum(one.numel() for one in shapes.values()), sum(one.nbytes for one in shapes.values()))
    if split.is_sharded:
        index = {
            "metadata": {"total_size": written.total_bytes, "total_parameters": written.parameters},
            "weight_map": {new_names[name]: file for name, file in split.tensor_to_filename.items()},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return written


def shallow_names(names: Iterable[str], num_layers: int, kept: Sequence[int]) -> dict[str, str]:
    """Map the name of every exported tensor of a checkpoint to its name in the export.

    Tensors outside the decoder layers keep their names. Layers beyond `num_layers`, which predict further tokens, are dropped.
    Raises UsageError unless the names contain exactly one stack of `num_layers` layers.

    >>> shallow_names(["h.0.w", "h.1.w", "h.2.w", "norm"], 3, (0, 2))
    {'h.0.w': 'h.0.w', 'h.2.w': 'h.1.w', 'norm': 'norm'}
    """
    names = list(names)
    prefix = stack_prefix(names, num_layers)
    position = {layer: i for i, layer in enumerate(kept)}
    new_names: dict[str, str] = {}
    for name in names:
        match = _LAYER.match(name)
        if match is None or match[1] != prefix:
            new_names[name] = name
        elif int(match[2]) in position:
            new_names[name] = f"{prefix}{position[int(match[2])]}.{name[match.end() :]}"
    return new_names


def stack_prefix(names: Sequence[str], num_layers: int) -> str:
    """Return the part of a decoder layer's name before its index."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if match := _LAYER.match(name):
            numbers[match[1]].add(int(match[2]))
    layers = set(range(num_layers))
    exact = [prefix for prefix, found in numbers.items() if found == layers]
    candidates = exact or [prefix for prefix, found in numbers.items() if found > layers]
    if len(candidates) != 1:
        raise UsageError(
            f"expected one stack of {num_layers} layers in the tensor names, got {len(candidates)}; use a complete checkpoint"
        )
    return candidates[0]


def weights_digest(folder: Path) -> str:
    """Return a hash of names, types, shapes and first bytes of all tensors in a folder's safetensors.

    `ulskip_vllm/pair_export.py` computes the same hash to check that two servers hold the models of one pair.
    """
    tensors = []
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            for name, entry in json.loads(stream.read(size)).items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    stream.seek(8 + size + start)
                    tensors.append((name, entry["dtype"], entry["shape"], stream.read(min(end - start, _SAMPLE_BYTES)).hex()))
    return hashlib.sha256(json.dumps(sorted(tensors)).encode()).hexdigest()
