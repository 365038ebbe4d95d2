"""Weights from one folder's safetensors files to another's, a shard in memory at a time."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ulskip_cli.errors import UsageError
from ulskip_cli.export.naming import shards
from ulskip_cli.progress import Silent, Tell

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        total_bytes: of all tensors.
        parameters: their number.
        files: names, in order.
    """

    total_bytes: int
    parameters: int
    files: tuple[str, ...]


class Source:
    """The tensors of a checkpoint by name, read when asked for."""

    def __init__(self, folder: Path) -> None:
        """Find the files that transformers would read.

        Raises:
            UsageError: there are none.
        """
        index = folder / INDEX
        if (folder / WEIGHTS).is_file():
            with safe_open(folder / WEIGHTS, "pt") as file:
                self.files = dict.fromkeys(file.keys(), folder / WEIGHTS)
        elif index.is_file():
            weight_map: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
            self.files = {name: folder / Path(file).name for name, file in weight_map.items()}
        else:
            raise UsageError(f"no {WEIGHTS} and no {INDEX} in {folder}; only safetensors are exported")
        missing = sorted({file.name for file in self.files.values() if not file.is_file()})
        if missing:
            raise UsageError(f"{folder} lacks {missing[0]}, which its index names")

    def sizes(self, dtype: torch.dtype | None) -> dict[str, int]:
        """Bytes of every tensor as it will be written, in the order of the files."""
        found: dict[str, int] = {}
        for path in dict.fromkeys(self.files.values()):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - a file is no mapping
                    part = file.get_slice(name)
                    empty = torch.empty(0, dtype=_DTYPES.get(part.get_dtype(), torch.uint8))
                    count = torch.Size(part.get_shape()).numel()
                    found[name] = count * narrowed(empty, dtype).element_size()
        return found

    def read(self, names: Mapping[str, str], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Tensors under their new names.

        Args:
            names: new name by name.
            dtype: what wider floating tensors become; None: nothing changes.
        """
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for name in names:
                if self.files[name] not in opened:
                    opened[self.files[name]] = stack.enter_context(safe_open(self.files[name], "pt"))
            return {new: narrowed(opened[self.files[old]].get_tensor(old), dtype) for old, new in names.items()}


def write(
    source: Source,
    names: Mapping[str, str],
    dtype: torch.dtype | None,
    folder: Path,
    shard_bytes: int,
    begin: Callable[[int], Tell] = lambda total: Silent().phase("", total),
) -> Written:
    """Write tensors as a checkpoint of one file, or of several with an index.

    Args:
        source: of the tensors.
        names: new name of each that stays.
        dtype: what wider floating tensors become; None: nothing changes.
        folder: that exists.
        shard_bytes: the most of one file, unless a single tensor is larger.
        begin: called with the number of files; takes how many of them are written.
    """
    sizes = {name: size for name, size in source.sizes(dtype).items() if name in names}
    parts = shards(sizes, shard_bytes)
    tell = begin(len(parts))
    weight_map: dict[str, str] = {}
    files, parameters = [], 0
    for number, part in enumerate(parts, start=1):
        file = WEIGHTS if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = source.read({name: names[name] for name in part}, dtype)
        parameters += sum(tensor.numel() for tensor in tensors.values())
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(folder.stat().st_mode & 0o666)  # as readable as the folder is
        weight_map |= dict.fromkeys(tensors, file)
        files.append(file)
        del tensors
        tell(number)
    total = sum(sizes.values())
    if len(parts) > 1:
        index = {"metadata": {"total_size": total, "total_parameters": parameters}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return Written(total, parameters, tuple(files))


def narrowed(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in a narrower floating type; what is narrow already is widened by whoever loads it, without loss."""
    if dtype is None or not tensor.is_floating_point() or tensor.element_size() <= dtype.itemsize:
        return tensor
    return tensor.to(dtype)


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
