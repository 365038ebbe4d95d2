"""Merge a skip adapter into the linear layers of a checkpoint, while its tensors are copied."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ulskip_cli.core.errors import UsageError
from ulskip_cli.export.config import read_config
from ulskip_cli.export.request import ResolvedExport
from ulskip_cli.export.tensors import CheckpointReader, stack_prefix
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.loading import pick_device
from ulskip_cli.inference.model_comparison import meta_model
from ulskip_cli.inference.skip_adapter import SkipAdapter, changed_bias, changed_weight


@dataclass(frozen=True)
class _Change:
    parts: Mapping[str, Tensor]  # fold and LoRA of a module
    transposed: bool  # True for the weight of a Conv1D
    is_bias: bool


class MergedReader:
    """The tensors of a checkpoint with an adapter merged; it replaces a `CheckpointReader`."""

    def __init__(
        self, reader: CheckpointReader, changes: Mapping[str, _Change], dtype: torch.dtype | None, device: str
    ) -> None:
        """`dtype` is the dtype of changed tensors (None: unchanged), `device` computes them; both are those of the view."""
        self.reader, self.files = reader, reader.files
        self.changes, self.dtype, self.device = changes, dtype, pick_device(device)

    def read(self, names: Iterable[str], device: str = "cpu") -> dict[str, Tensor]:
        """Return tensors by name, as `CheckpointReader.read` does."""
        tensors = self.reader.read(names, device)
        for name in tensors.keys() & self.changes.keys():
            tensors[name] = self._changed(tensors[name].to(self.dtype or tensors[name].dtype), self.changes[name])
        return tensors

    def _changed(self, tensor: Tensor, change: _Change) -> Tensor:
        if tensor.is_meta:
            return tensor
        own = tensor.to(self.device)
        if not change.is_bias:
            return changed_weight(own, change.parts, change.transposed).cpu()
        changed = changed_bias(own, change.parts, tensor.dtype)
        assert changed is not None
        return changed.cpu()


def merged_reader(point: ResolvedExport, source: Path, reader: CheckpointReader, adapter: SkipAdapter) -> MergedReader:
    """Return a reader of the checkpoint in `source` with an adapter merged; raise UsageError if the model cannot contain it."""
    trusted, changes = point.config.model.trust_remote_code, {}
    layers = shallow_view.decoder_layers(meta_model(read_config(source, trusted), trusted))
    prefix = stack_prefix(list(reader.files), adapter.num_layers)
    for layer, modules in adapter.linear_changes(point.plan.kept_layers).items():
        for path, parts in modules.items():
            try:
                module: Any = layers[layer].get_submodule(path)
            except AttributeError:
                raise _unfit(f"{prefix}{layer}.{path}") from None
            weight, bias = (f"{prefix}{layer}.{path}.{part}" for part in ("weight", "bias"))
            if weight not in reader.files:
                raise _unfit(weight)
            changes[weight] = _Change(parts, type(module) is Conv1D, is_bias=False)
            if bias in reader.files:
                changes[bias] = _Change(parts, transposed=False, is_bias=True)
            elif "bias" in parts and bool(parts["bias"].any()):
                raise UsageError(
                    f"expected patches without a bias for {path}, which has none in this model, got a skip adapter with one; "
                    "compute it again with `ulskip run ... strategy.patch=folded`"
                )
    return MergedReader(reader, changes, _loaded_dtype(point, source), point.config.model.device)


def _unfit(name: str) -> UsageError:
    return UsageError(
        f"expected the tensor {name} of the skip adapter's linear layer in the checkpoint, got none; use --format schedule"
    )


def _loaded_dtype(point: ResolvedExport, source: Path) -> torch.dtype | None:
    """Return the dtype in which transformers loads the source; None means that of each tensor."""
    if point.dtype is not None:
        found: torch.dtype = getattr(torch, point.dtype)
        return found
    config = read_config(source, point.config.model.trust_remote_code)
    return getattr(config, "dtype", None)
