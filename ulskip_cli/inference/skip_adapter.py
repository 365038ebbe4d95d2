"""Skip adapters: corrections of a model's views, which leave the model itself unchanged, and the
folder that stores them.

An adapter contains gap patches, which `patch_fit.py` computes or training makes, and LoRA matrices
on kept layers.
"""

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.correction import ADAPTER_FILE, KINDS, GapPatch
from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import JsonObject, user_path, write_atomic
from ulskip_cli.core.schedule import Layers
from ulskip_cli.core.weight_sizes import gaps
from ulskip_cli.inference import shallow_view
from ulskip_cli.strategies.plan import Plan

WEIGHTS_FILE = "adapter.safetensors"
FORMAT = 1
# the number of a decoder layer, and the path of a linear layer in it
LinearAddress = tuple[int, str]


class PatchModule(nn.Module):
    """A patch at a gap, which adds the output of its kind's module to hidden states. A folded patch
    has no module, because it changes a linear layer.
    """

    def __init__(self, patch: GapPatch, model: PreTrainedModel) -> None:
        """Copy a patch; raise RuntimeError if it does not fit the model."""
        super().__init__()
        self.kind = type(patch)
        self.linear = patch.module(shallow_view.text_config(model).hidden_size)
        self.linear.load_state_dict(patch.parts)

    @property
    def patch(self) -> GapPatch:
        """The patch with the tensors of the module."""
        return self.kind(self.linear.state_dict())

    def forward(self, hidden: Tensor) -> Tensor:
        """Correct hidden states [..., hidden_size]."""
        # In training, patches are in float32 and the model may be in bfloat16.
        dtype = next(self.linear.parameters()).dtype
        correction: Tensor = self.linear(hidden.to(dtype))
        return hidden + correction.to(hidden.dtype)


def patched_view(
    model: PreTrainedModel, kept: Layers, patches: Mapping[int, nn.Module]
) -> PreTrainedModel:
    """Return the view of `kept` with patches, given by the kept layer in front of which each acts;
    a patch behind the last kept layer is given by the model's number of layers.
    """
    num_layers = shallow_view.num_layers(model)

    def adapt(place: int, layer: nn.Module) -> nn.Module:
        after = patches.get(num_layers) if place == len(kept) - 1 else None
        patched = {"patch_before": patches.get(kept[place]), "patch_after": after}
        if not any(patched.values()):
            return layer
        kind = _patched_class(type(layer))  # type: ignore[arg-type]
        return shallow_view.copied(layer, patched, kind)

    return shallow_view.shallow_view(model, kept, adapt)


@functools.cache
def _patched_class(source: type[nn.Module]) -> type:
    """Make a subclass of a decoder layer that applies the patches in its attributes `patch_before`
    and `patch_after`, which may be None, to the hidden states.
    """

    class PatchedLayer(source):  # type: ignore[misc, valid-type]
        """A decoder layer with patches."""

        def forward(self, *args: object, **kwargs: object) -> object:
            before, after = self.patch_before, self.patch_after
            if before is not None and args:  # the first or a named argument, as the model calls
                args = (before(args[0]), *args[1:])
            elif before is not None:
                kwargs["hidden_states"] = before(kwargs["hidden_states"])
            output = super().forward(*args, **kwargs)
            if after is None:
                return output
            return (after(output[0]), *output[1:]) if isinstance(output, tuple) else after(output)

    return PatchedLayer


class Lora(NamedTuple):
    """Matrices that add `up down` to the weight of a linear layer in every set of layers."""

    down: Tensor  # [rank, in]
    up: Tensor  # [out, rank]


@dataclass(frozen=True)
class SkipAdapter:
    """The corrections of the views of one model, for one or several sets of kept layers."""

    num_layers: int
    kind: type[GapPatch]
    # by kept layers, and there by the layer behind the gap, or the model's number of layers
    patches: Mapping[Layers, Mapping[int, GapPatch]]
    lora: Mapping[LinearAddress, Lora] = field(default_factory=dict)
    record: JsonObject = field(default_factory=dict)  # base model, and how the adapter was made

    @property
    def kept_sets(self) -> tuple[Layers, ...]:
        """The sets of kept layers."""
        return tuple(self.patches)

    def view(self, model: PreTrainedModel, kept: Layers) -> PreTrainedModel:
        """Return the corrected view of `kept`, one of `kept_sets`; raise UsageError for other
        layers or an unfit model.
        """
        num_layers = shallow_view.num_layers(model)
        if kept not in self.patches or num_layers != self.num_layers:
            raise UsageError(
                f"expected a skip adapter for layers {kept} of {num_layers}, got one for"
                f" {self.kept_sets} of {self.num_layers}; use another adapter"
            )
        try:
            with torch.no_grad():
                modules = self.modules(kept, model)
                for module in modules.values():
                    module.to(model.dtype).requires_grad_(False).eval()
                return patched_view(self.merged(model, kept), kept, modules)
        except (RuntimeError, AttributeError, KeyError, ValueError) as error:
            raise UsageError(
                f"the skip adapter does not fit this model ({reason(error)})"
            ) from None

    def modules(self, kept: Layers, model: PreTrainedModel) -> dict[int, PatchModule]:
        """Return the patches of `kept` that are not folded as modules on the device of the model,
        by the layer behind the gap; raise RuntimeError if they do not fit the model.
        """
        if self.kind.is_folded:
            return {}
        patches = self.patches[kept].items()
        return {gap: PatchModule(patch, model).to(model.device) for gap, patch in patches}

    def merged(self, model: PreTrainedModel, kept: Layers) -> PreTrainedModel:
        """Return a copy of a model that shares its weights, except those of linear layers with
        folded patches or LoRA of the layers `kept`.
        """
        stack = shallow_view.decoder_layers(model)
        folds = {patch.address: patch for patch in self.patches[kept].values() if patch.is_folded}
        changed = {}
        for address in {*folds, *(address for address in self.lora if address[0] in kept)}:
            layer, path = address
            module = stack[layer].get_submodule(path)
            changed[module] = _changed_linear(module, folds.get(address), self.lora.get(address))
        return shallow_view.substituted(model, changed)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by their stored names.

        These are `patch.SET.LAYER.linear.PARAMETER`, where SET is an index into the sets and LAYER
        the one behind the gap; `fold.SET.LAYER.MODULE.PARAMETER` of a folded patch in a linear
        layer of the layer before the gap; and `lora.LAYER.MODULE.A` (down) and `.B` (up).
        """
        tensors = dict[str, Tensor]()
        for index, patches in enumerate(self.patches.values()):
            for gap, patch in patches.items():
                prefix = f"patch.{index}.{gap}.linear"
                if patch.is_folded:
                    prefix = "fold.{}.{}.{}".format(index, *patch.address)
                tensors |= {f"{prefix}.{name}": part for name, part in patch.parts.items()}
        for (layer, path), (down, up) in self.lora.items():
            tensors |= {f"lora.{layer}.{path}.A": down, f"lora.{layer}.{path}.B": up}
        return tensors

    def save(self, folder: Path) -> None:
        """Write the folder; the record is last, so that a folder with a record is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in self.tensors().items()
        }
        data = safetensors.torch.save(tensors, metadata={"format": "pt"})
        write_atomic(folder / WEIGHTS_FILE, data)
        record = {
            "format": FORMAT,
            "num_layers": self.num_layers,
            "kept_sets": self.kept_sets,
            "sha256": hashlib.sha256(data).hexdigest(),
            "kind": self.kind.name,
            **self.record,
        }
        write_atomic(folder / ADAPTER_FILE, json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "SkipAdapter":
        """Read an adapter; raise UsageError if the folder holds none, or its tensors have changed
        since they were saved.
        """
        try:
            record = json.loads((folder / ADAPTER_FILE).read_text("utf-8"))
            data = (folder / WEIGHTS_FILE).read_bytes()
            if record.pop("sha256", "") not in ("", hashlib.sha256(data).hexdigest()):
                raise ValueError(f"{WEIGHTS_FILE} is not the file that {ADAPTER_FILE} belongs to")
            tensors = safetensors.torch.load(data)
            for name, tensor in tensors.items():
                if not tensor.is_floating_point():
                    raise ValueError(f"{name} has the type {tensor.dtype}, not a float")
            if record.pop("format") != FORMAT:
                raise ValueError(f"the format in {ADAPTER_FILE} is not {FORMAT}")
            kept_sets = [tuple(layers) for layers in record.pop("kept_sets")]
            num_layers, kind = record.pop("num_layers"), KINDS[record.pop("kind")]
            patches, lora = _corrections(tensors, kind, kept_sets, num_layers)
            return cls(num_layers, kind, patches, lora, record)
        except Exception as error:  # the files may contain anything
            raise UsageError(
                f"expected a skip adapter in {folder}, got an error: {reason(error)}; make one with"
                " `ulskip train train=adapter`"
            ) from None


def _corrections(
    tensors: Mapping[str, Tensor],
    kind: type[GapPatch],
    kept_sets: Sequence[Layers],
    num_layers: int,
) -> tuple[dict[Layers, dict[int, GapPatch]], dict[LinearAddress, Lora]]:
    """Return patches and LoRA from tensors by their names, which `SkipAdapter.tensors` explains."""
    patches = {kept: dict[int, GapPatch]() for kept in kept_sets}
    matrices = defaultdict[LinearAddress, dict[str, Tensor]](dict)
    for name, tensor in tensors.items():
        match name.split("."):
            case ["lora", layer, *path, part]:
                matrices[int(layer), ".".join(path)][part] = tensor
            case ["fold", index, layer, *path, part]:
                kept, address = kept_sets[int(index)], (int(layer), ".".join(path))
                gap = min(behind for behind in (*kept, num_layers) if behind > int(layer))
                patches[kept].setdefault(gap, kind({}, address)).parts[part] = tensor
            case ["patch", index, gap_name, "linear", *path]:
                patch = patches[kept_sets[int(index)]].setdefault(int(gap_name), kind({}))
                patch.parts[".".join(path)] = tensor
            case _:
                raise ValueError(f"{name} is no tensor of a skip adapter")
    return patches, {address: Lora(found["A"], found["B"]) for address, found in matrices.items()}


def load_adapter(config: Config, plan: Plan) -> tuple[SkipAdapter | None, JsonObject | None]:
    """Return the skip adapter of a configuration for a plan and its entry in a row, or None without
    one.

    Raises UsageError if the adapters belong to another model, or none has the plan's layers.
    """
    folder = config.correction.folder_for(config.model, plan.sets_with_gaps)
    if folder is None:
        return None, None
    adapter = SkipAdapter.load(user_path(folder, "correction.path"))
    size = sum(tensor.nbytes for tensor in adapter.tensors().values())
    return adapter, {"path": folder, "bytes": size, "kind": adapter.kind.name, **adapter.record}


def zero_adapter(
    model: PreTrainedModel, kept_sets: Sequence[Layers], kind: type[GapPatch]
) -> SkipAdapter:
    """Return an adapter whose patches change nothing but take the usual time, to measure speed; it
    has no patches if the kind takes no time, as folded ones do not.
    """
    num_layers = shallow_view.num_layers(model)
    hidden_size = shallow_view.text_config(model).hidden_size
    patches = {}
    for kept in kept_sets:
        patched_gaps = gaps(kept, num_layers) if kind.has_module else ()
        # A new module adds nothing to the states.
        patches[kept] = {gap: kind(kind.module(hidden_size).state_dict()) for gap in patched_gaps}
    return SkipAdapter(num_layers, kind, patches)


def _changed_linear(module: nn.Module, fold: GapPatch | None, lora: Lora | None) -> nn.Module:
    """Return a linear layer like `module` with a folded patch and LoRA in its weights."""
    if type(module) not in shallow_view.LINEARS:
        raise UsageError(
            f"the skip adapter changes the weights of linear layers, and {type(module).__name__}"
            " has none that can be changed; use an adapter with patches of kind full,"
            " or a model without quantization"
        )
    source: Any = module
    transposed = type(module) is Conv1D  # its weight is [in, out]
    weight = source.weight.t() if transposed else source.weight
    # Copied, also if nothing changes: the bits of its products can depend on its alignment in
    # memory, and an exported model, which has weights of its own, must give the same bits.
    weight = weight.detach().to(torch.float32, copy=True)
    bias = None if source.bias is None else source.bias.detach().to(weight, copy=True)
    if fold:
        weight, bias = fold.merged(weight, bias)
    if lora:  # after the fold, which would change its product
        weight = weight + lora.up.to(weight) @ lora.down.to(weight)
    weight = (weight.t() if transposed else weight).contiguous()
    parameters = {
        name: None if tensor is None else nn.Parameter(tensor.to(source.weight.dtype), False)
        for name, tensor in (("weight", weight), ("bias", bias))
    }
    changed = shallow_view.copied(module, {})
    vars(changed)["_parameters"] = parameters
    return changed
