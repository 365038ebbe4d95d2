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
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.correction import patch_parameters
from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import Table, user_path, write_atomic
from ulskip_cli.core.schedule import Layers
from ulskip_cli.core.weight_sizes import gaps
from ulskip_cli.corrections import RECORD
from ulskip_cli.inference import shallow_view
from ulskip_cli.strategies.plan import Plan

WEIGHTS = "adapter.safetensors"
FORMAT = 1


def patch_name(kept_set: int, layer: int, parameter: str) -> str:
    """Name a parameter of the `GapPatch` in front of a layer or, with the model's number of layers,
    behind the last kept layer; `kept_set` is an index into the sets of kept layers.
    """
    return f"patch.{kept_set}.{layer}.{parameter}"


def fold_name(kept_set: int, layer: int, module: str, parameter: str) -> str:
    """Name the weight F [out, out] or the bias b of a folded patch, which changes the output of the
    linear layer at the path `module` of a decoder layer to `y + y F + b`.
    """
    return f"fold.{kept_set}.{layer}.{module}.{parameter}"


def lora_name(layer: int, module: str, factor: str) -> str:
    """Name the factor A [rank, in] or B [out, rank] of LoRA, which adds `B A` to the weight of a
    linear layer in every set.
    """
    return f"lora.{layer}.{module}.{factor}"


class GapPatch(nn.Module):
    """A map `h + W h + b` of hidden states [..., hidden_size], with a full matrix `W`. A folded
    patch has no such module, because it changes a linear layer.
    """

    def __init__(self, hidden_size: int) -> None:
        """Make a patch that changes nothing, so that training can start from it."""
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def from_parts(cls, modules: Mapping[str, Mapping[str, Tensor]]) -> "GapPatch":
        """Make a patch from the tensors of its `state_dict`, by module and parameter."""
        patch = cls(len(modules["linear"]["bias"]))
        patch.linear.load_state_dict(modules["linear"])
        return patch

    def forward(self, hidden: Tensor) -> Tensor:
        """Correct hidden states [..., hidden_size]."""
        # In training, patches are in float32 and the model may be in bfloat16.
        correction: Tensor = self.linear(hidden.to(self.linear.weight.dtype))
        return hidden + correction.to(hidden.dtype)


def patched_layer(
    layer: nn.Module, before: nn.Module | None, after: nn.Module | None = None
) -> nn.Module:
    """Return a copy of a decoder layer that applies patches to its input and output; it shares the
    layer's weights.
    """
    if before is None and after is None:
        return layer
    kind = _patched_class(type(layer))  # type: ignore[arg-type]
    return shallow_view.copied(layer, {"patch_before": before, "patch_after": after}, kind)


@functools.cache
def _patched_class(source: type[nn.Module]) -> type:
    """Make a subclass of a decoder layer that applies patches before and after it."""

    class PatchedLayer(source):  # type: ignore[misc, valid-type]
        """A decoder layer with patches."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            before, after = self.patch_before, self.patch_after
            if before is not None and args:
                args = (before(args[0]), *args[1:])
            elif before is not None:
                kwargs["hidden_states"] = before(kwargs["hidden_states"])
            output = super().forward(*args, **kwargs)
            if after is None:
                return output
            return (after(output[0]), *output[1:]) if isinstance(output, tuple) else after(output)

    return PatchedLayer


@dataclass(frozen=True)
class SkipAdapter:
    """The corrections of the views of one model, for one or several sets of kept layers.
    `patch_name`, `fold_name` and `lora_name` name the tensors.
    """

    num_layers: int
    kept_sets: tuple[Layers, ...]
    tensors: Mapping[str, Tensor]
    record: Table = field(default_factory=dict)  # base model, kind, and how the adapter was made

    def view(self, model: PreTrainedModel, kept: Layers) -> PreTrainedModel:
        """Return the corrected view of `kept`, one of `kept_sets`; raise UsageError for other
        layers or an unfit model.
        """
        num_layers = shallow_view.num_layers(model)
        if kept not in self.kept_sets or num_layers != self.num_layers:
            raise UsageError(
                f"expected a skip adapter for layers {kept} of {num_layers}, got one for"
                f" {self.kept_sets} of {self.num_layers}; use another adapter"
            )
        width = model.config.get_text_config(decoder=True).hidden_size
        index = self.kept_sets.index(kept)

        def patch(layer: int, device: torch.device) -> nn.Module | None:
            if layer not in patches:
                return None
            made = GapPatch.from_parts(patches[layer]).to(device, model.dtype)
            made(torch.zeros(width, dtype=model.dtype, device=device))  # fails for another width
            return made.requires_grad_(False).eval()

        def adapt(place: int, layer: nn.Module) -> nn.Module:
            device = next(layer.parameters()).device
            last = patch(num_layers, device) if place == len(kept) - 1 else None
            changed = with_linears(layer, changes[kept[place]])
            return patched_layer(changed, patch(kept[place], device), last)

        try:
            patches, changes = self.patches(index), self._parts("lora.", f"fold.{index}.")
            with torch.no_grad():
                return shallow_view.shallow_view(model, kept, adapt)
        except (RuntimeError, AttributeError, KeyError, ValueError) as error:
            raise UsageError(
                f"the skip adapter does not fit this model ({reason(error)})"
            ) from None

    def save(self, folder: Path) -> None:
        """Write the folder; the record is last, so that a folder with a record is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in self.tensors.items()
        }
        data = save(tensors, metadata={"format": "pt"})
        write_atomic(folder / WEIGHTS, data)
        record = {
            "format": FORMAT,
            "num_layers": self.num_layers,
            "kept_sets": self.kept_sets,
            "sha256": hashlib.sha256(data).hexdigest(),
            **self.record,
        }
        write_atomic(folder / RECORD, json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "SkipAdapter":
        """Read an adapter; raise UsageError if the folder holds none, or its tensors have changed
        since they were saved.
        """
        try:
            record = json.loads((folder / RECORD).read_text("utf-8"))
            data = (folder / WEIGHTS).read_bytes()
            if record.pop("sha256", "") not in ("", hashlib.sha256(data).hexdigest()):
                raise ValueError(f"{WEIGHTS} is not the file that {RECORD} belongs to")
            tensors = load(data)
            for name, tensor in tensors.items():
                if not tensor.is_floating_point():
                    raise ValueError(f"{name} has the type {tensor.dtype}, not a float")
            if record.pop("format") != FORMAT:
                raise ValueError(f"the format in {RECORD} is not {FORMAT}")
            kept_sets = tuple(tuple(layers) for layers in record.pop("kept_sets"))
            return cls(record.pop("num_layers"), kept_sets, tensors, record)
        except Exception as error:  # the files may contain anything
            raise UsageError(
                f"expected a skip adapter in {folder}, got an error: {reason(error)}; make one with"
                " `ulskip train train=adapter`"
            ) from None

    @property
    def folds(self) -> dict[str, Tensor]:
        """The tensors of folded patches, by name."""
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith("fold.")}

    def patches(self, kept_set: int) -> dict[int, dict[str, dict[str, Tensor]]]:
        """Return the states of the patches of a set, by layer, module and parameter."""
        return self._parts(f"patch.{kept_set}.")

    def folded(self, kept_set: int) -> dict[int, dict[str, dict[str, Tensor]]]:
        """Return the folded patches of a set, by layer, module and parameter."""
        return self._parts(f"fold.{kept_set}.")

    def _parts(self, *prefixes: str) -> dict[int, dict[str, dict[str, Tensor]]]:
        """Return the tensors whose name begins with one of `prefixes`, by layer, module and the
        last part of their name.
        """
        layers = defaultdict[int, dict[str, dict[str, Tensor]]](lambda: defaultdict(dict))
        for prefix in prefixes:
            for name, tensor in self.tensors.items():
                if name.startswith(prefix):
                    layer, _, rest = name.removeprefix(prefix).partition(".")
                    module, _, part = rest.rpartition(".")
                    layers[int(layer)][module][part] = tensor
        return layers


def load_adapter(config: Config, plan: Plan) -> tuple[SkipAdapter | None, Table | None]:
    """Return the skip adapter of a configuration for a plan and its entry in a row, or None without
    one.

    Raises UsageError if the adapters belong to another model, or none has the plan's layers.
    """
    folder = config.correction.folder_for(config.model, plan.skipping_sets)
    if folder is None:
        return None, None
    adapter = SkipAdapter.load(user_path(folder, "correction.path"))
    size = sum(tensor.nbytes for tensor in adapter.tensors.values())
    return adapter, {"path": folder, "bytes": size, **adapter.record}


def zero_adapter(model: PreTrainedModel, kept_sets: Sequence[Layers], kind: str) -> SkipAdapter:
    """Return an adapter whose patches change nothing but take the usual time; kind folded has no
    patches, and takes no time.
    """
    num_layers = shallow_view.num_layers(model)
    hidden_size = model.config.get_text_config(decoder=True).hidden_size
    tensors: dict[str, Tensor] = {}
    for index, kept in enumerate(kept_sets):
        for layer in gaps(kept, num_layers) if patch_parameters(kind, hidden_size) else ():
            state = GapPatch(hidden_size).state_dict()
            tensors |= {patch_name(index, layer, name): tensor for name, tensor in state.items()}
    return SkipAdapter(num_layers, tuple(kept_sets), tensors)


def with_linears(layer: nn.Module, changes: Mapping[str, Mapping[str, Tensor]]) -> nn.Module:
    """Return a copy of a layer in which the modules at some paths have changed weights; see
    `changed_linear`.
    """
    if not changes:
        return layer
    modules = {layer.get_submodule(path): parts for path, parts in changes.items()}
    replaced = {module: changed_linear(module, parts) for module, parts in modules.items()}
    return shallow_view.substituted(layer, replaced.get)


def changed_linear(module: nn.Module, parts: Mapping[str, Tensor]) -> nn.Module:
    """Return a layer of the class of `module` with its weights changed by a fold (weight, bias) and
    LoRA (A, B).
    """
    if type(module) not in (nn.Linear, Conv1D):
        raise UsageError(
            f"the skip adapter changes the weights of linear layers, and {type(module).__name__}"
            " has none that can be changed; use an adapter with patches of kind full,"
            " and no model.quantization"
        )
    source: Any = module
    transposed = type(module) is Conv1D  # its weight is [in, out]
    weight = source.weight.t() if transposed else source.weight
    # The copies are aligned in memory, and the bits of a product can depend on that: an export must
    # equal the view.
    weight = weight.detach().to(torch.float32, copy=True)
    bias = source.bias if source.bias is None else source.bias.detach().to(weight, copy=True)
    if "weight" in parts:
        fold = parts["weight"].to(weight)
        weight = weight + fold.t() @ weight
        bias = bias if bias is None else bias + bias @ fold
    if "A" in parts:
        weight = weight + parts["B"].to(weight) @ parts["A"].to(weight)
    if "bias" in parts:
        added = parts["bias"].to(weight)
        bias = added if bias is None else bias + added
    weight = (weight.t() if transposed else weight).contiguous()
    parameters = {
        name: None if tensor is None else nn.Parameter(tensor.to(source.weight.dtype), False)
        for name, tensor in (("weight", weight), ("bias", bias))
    }
    return shallow_view.with_attributes(module, lambda part: {"_parameters": parameters})
