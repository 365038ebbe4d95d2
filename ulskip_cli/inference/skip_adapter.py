"""Skip adapters: corrections of a model's views, which leave the model itself unchanged, and the
folder that stores them.

An adapter contains gap patches, which `patch_fit.py` computes or training makes, and LoRA matrices
on kept layers.
"""

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.correction import KINDS, RECORD, PatchKind
from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import Table, user_path, write_atomic
from ulskip_cli.core.schedule import Layers
from ulskip_cli.core.weight_sizes import gaps
from ulskip_cli.inference import shallow_view
from ulskip_cli.strategies.plan import Plan

WEIGHTS = "adapter.safetensors"
FORMAT = 1
NamedTensor = tuple[int, str, Tensor]  # the layer that it belongs to, and its name there


class GapPatch(nn.Module):
    """A patch at a gap, which adds the output of its kind's module to hidden states. A folded patch
    has no module, because it changes a linear layer.
    """

    def __init__(self, kind: PatchKind, model: PreTrainedModel) -> None:
        """Make a patch that changes nothing."""
        super().__init__()
        self.kind = kind
        # this name is a part of the stored tensors' names
        self.linear = kind.module(shallow_view.text_config(model).hidden_size)

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


@dataclass(frozen=True)
class SkipAdapter:
    """The corrections of the views of one model, for one or several sets of kept layers.

    The names of tensors are:
    `patch.SET.LAYER.PARAMETER`, a parameter of the `GapPatch` in front of a layer or, with the
    model's number of layers, behind the last kept layer; SET is an index into the sets;
    `fold.SET.LAYER.MODULE.PARAMETER`, of a folded patch in the linear layer at a path of a layer;
    `lora.LAYER.MODULE.A` [rank, in] and `.B` [out, rank], which add `B A` to the weight of a linear
    layer in every set.
    """

    num_layers: int
    kept_sets: tuple[Layers, ...]
    kind: PatchKind
    tensors: Mapping[str, Tensor]
    record: Table = field(default_factory=dict)  # base model, and how the adapter was made

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
        index = self.kept_sets.index(kept)
        try:
            with torch.no_grad():
                patches = self.patches(index, model)
                for patch in patches.values():
                    patch.to(model.dtype).requires_grad_(False).eval()
                changes = [*self._named(f"fold.{index}."), *self._named("lora.")]
                kept_changes = [change for change in changes if change[0] in kept]
                return patched_view(self._with_linears(model, kept_changes), kept, patches)
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
        data = safetensors.torch.save(tensors, metadata={"format": "pt"})
        write_atomic(folder / WEIGHTS, data)
        record = {
            "format": FORMAT,
            "num_layers": self.num_layers,
            "kept_sets": self.kept_sets,
            "sha256": hashlib.sha256(data).hexdigest(),
            "kind": self.kind.name,
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
            tensors = safetensors.torch.load(data)
            for name, tensor in tensors.items():
                if not tensor.is_floating_point():
                    raise ValueError(f"{name} has the type {tensor.dtype}, not a float")
            if record.pop("format") != FORMAT:
                raise ValueError(f"the format in {RECORD} is not {FORMAT}")
            kept_sets = tuple(tuple(layers) for layers in record.pop("kept_sets"))
            kind = KINDS[record.pop("kind")]
            return cls(record.pop("num_layers"), kept_sets, kind, tensors, record)
        except Exception as error:  # the files may contain anything
            raise UsageError(
                f"expected a skip adapter in {folder}, got an error: {reason(error)}; make one with"
                " `ulskip train train=adapter`"
            ) from None

    def patches(self, kept_set: int, model: PreTrainedModel) -> dict[int, GapPatch]:
        """Return the patches of the set with this index, by the layer in front of which they act,
        on the device of the model; raise RuntimeError if they do not fit the model.
        """
        states = defaultdict[int, dict[str, Tensor]](dict)
        for layer, name, tensor in self._named(f"patch.{kept_set}."):
            states[layer][name] = tensor
        patches = {layer: GapPatch(self.kind, model) for layer in states}
        for layer, patch in patches.items():
            patch.load_state_dict(states[layer])
            patch.to(model.device)
        return patches

    def folded(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a copy of a model that contains the folded patches of the only set of layers."""
        return self._with_linears(model, self._named("fold.0."))

    def _with_linears(
        self, model: PreTrainedModel, changes: Iterable[NamedTensor]
    ) -> PreTrainedModel:
        """Return a copy of a model that shares its weights, except those of linear layers with
        folded patches or LoRA.
        """
        stack = shallow_view.decoder_layers(model)
        # by linear layer: its tensors by name, as `_changed_linear` takes them
        parts = defaultdict[nn.Module, dict[str, Tensor]](dict)
        for layer, name, tensor in changes:
            path, _, part = name.rpartition(".")
            parts[stack[layer].get_submodule(path)][part] = tensor
        changed = {module: _changed_linear(module, self.kind, parts[module]) for module in parts}
        return shallow_view.substituted(model, changed)

    def _named(self, prefix: str) -> Iterator[NamedTensor]:
        """Yield the tensors whose name begins with `prefix`, with the layer and the rest of their
        name.
        """
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                layer, _, rest = name.removeprefix(prefix).partition(".")
                yield int(layer), rest, tensor


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
    return adapter, {"path": folder, "bytes": size, "kind": adapter.kind.name, **adapter.record}


def zero_adapter(
    model: PreTrainedModel, kept_sets: Sequence[Layers], kind: PatchKind
) -> SkipAdapter:
    """Return an adapter whose patches change nothing but take the usual time, to measure speed; it
    has no tensors if the kind takes no time, as folded patches do not.
    """
    num_layers = shallow_view.num_layers(model)
    tensors: dict[str, Tensor] = {}
    for index, kept in enumerate(kept_sets):
        for layer in gaps(kept, num_layers) if kind.takes_time else ():
            state = GapPatch(kind, model).state_dict()
            tensors |= {f"patch.{index}.{layer}.{name}": part for name, part in state.items()}
    return SkipAdapter(num_layers, tuple(kept_sets), kind, tensors)


def _changed_linear(module: nn.Module, kind: PatchKind, parts: Mapping[str, Tensor]) -> nn.Module:
    """Return a linear layer like `module` with other weights. `parts` are A and B of LoRA, and
    under other names the tensors of a folded patch.
    """
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
    fold = {name: part for name, part in parts.items() if name not in ("A", "B")}
    if fold:
        weight, bias = kind.merged(fold, weight, bias)
    if "A" in parts:  # after the fold, which would change its product
        weight = weight + parts["B"].to(weight) @ parts["A"].to(weight)
    weight = (weight.t() if transposed else weight).contiguous()
    parameters = {
        name: None if tensor is None else nn.Parameter(tensor.to(source.weight.dtype), False)
        for name, tensor in (("weight", weight), ("bias", bias))
    }
    changed = shallow_view.copied(module, {})
    vars(changed)["_parameters"] = parameters
    return changed
