"""Skip adapters: corrections of a model's views, which leave the model itself unchanged, and the
folder that stores them.

An adapter contains gap patches, which `patch_fit.py` computes or training makes, and LoRA matrices
on kept layers.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.correction import PatchShape
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path, write_atomic
from ulskip_cli.core.weight_sizes import gaps
from ulskip_cli.corrections.adapter import RECORD
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.gap_patch import KINDS, GapPatch, patched_layer
from ulskip_cli.strategies.plan import Plan

WEIGHTS = "adapter.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class SkipAdapter:
    """The corrections of the views of one model, for one or several sets of kept layers.

    Names in `tensors`: `patch.SET.LAYER.*` is the state of the `GapPatch` in front of a layer (or,
    with the model's number of layers, behind the last kept layer); `fold.SET.LAYER.MODULE.weight`
    [out, out] and `.bias` change the output of a linear module to `y + y F + b`;
    `lora.LAYER.MODULE.A` [rank, in] and `.B` [out, rank] add `B A` to a weight, in every set. SET
    is an index into `kept_sets`, LAYER a layer of the model, MODULE a path in that layer.
    """

    num_layers: int
    kept_sets: tuple[tuple[int, ...], ...]
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any] = field(
        default_factory=dict
    )  # base model, kind, and how the adapter was made

    def view(self, model: PreTrainedModel, kept: tuple[int, ...]) -> PreTrainedModel:
        """Return the corrected view of `kept`, one of `kept_sets`; raise UsageError for other
        layers or an unfit model.
        """
        num_layers = shallow_view.num_layers(model)
        if kept not in self.kept_sets or num_layers != self.num_layers:
            raise UsageError(
                f"expected {self.num_layers} layers and one of the sets of kept layers"
                f" {self.kept_sets} of the skip adapter, got {num_layers} and {kept}; use another"
                " adapter"
            )
        index, width = self.kept_sets.index(kept), model.config.get_text_config(True).hidden_size
        patches, folds = self.by_layer(f"patch.{index}."), self.by_layer(f"fold.{index}.")
        lora = self.by_layer("lora.")

        def patch(at: int, layer: nn.Module) -> nn.Module | None:
            if at not in patches:
                return None
            device = next(layer.parameters()).device
            made = GapPatch.from_tensors(patches[at]).to(device, model.dtype).requires_grad_(False)
            # raises RuntimeError if the widths differ
            made(torch.zeros(width, dtype=model.dtype, device=device))
            return made.eval()

        def adapt(place: int, layer: nn.Module) -> nn.Module:
            at, is_last = kept[place], place == len(kept) - 1
            changes = {**lora.get(at, {}), **folds.get(at, {})}
            after = patch(self.num_layers, layer) if is_last else None
            return patched_layer(with_linears(layer, by_module(changes)), patch(at, layer), after)

        try:
            with torch.no_grad():
                return shallow_view.shallow_view(model, kept, adapt)
        except (RuntimeError, AttributeError, KeyError) as error:
            raise UsageError(
                f"the skip adapter does not fit this model ({str(error).splitlines()[0][:160]})"
            ) from None

    def save(self, folder: Path) -> None:
        """Write the folder; the record is last, so that a folder with a record is complete."""
        tensors = {
            name: tensor.detach().float().cpu().contiguous()
            for name, tensor in self.tensors.items()
        }
        write_atomic(folder / WEIGHTS, save(tensors, {"format": "pt"}))
        record = {
            "format": FORMAT,
            "num_layers": self.num_layers,
            "kept_sets": self.kept_sets,
            **self.record,
        }
        write_atomic(folder / RECORD, json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "SkipAdapter":
        """Read an adapter; raise UsageError if the folder holds none."""
        try:
            record = json.loads((folder / RECORD).read_text("utf-8"))
            tensors = load_file(folder / WEIGHTS)
            kept_sets = tuple(tuple(layers) for layers in record.pop("kept_sets"))
            if (made := record.pop("format")) != FORMAT:
                raise ValueError(f"its format is {made}, not {FORMAT}")
            return cls(record.pop("num_layers"), kept_sets, tensors, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise UsageError(
                f"expected a skip adapter in {folder}, got an error: {str(error)[:160]}; make one"
                " with `ulskip train train=adapter`"
            ) from None

    def by_layer(self, prefix: str) -> dict[int, dict[str, Tensor]]:
        """Return the tensors whose name begins with `prefix`, by layer and by the rest of their
        name.
        """
        tensors: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                layer, _, rest = name.removeprefix(prefix).partition(".")
                tensors[int(layer)][rest] = tensor
        return tensors


def load_adapter(config: Config, plan: Plan) -> tuple[SkipAdapter | None, dict[str, Any] | None]:
    """Return the skip adapter of a configuration for a plan and its entry in a row, or None without
    one.

    Raises UsageError if the adapters are of another model, or none has the plan's layers.
    """
    folder = config.correction.folder_for(config.model, plan.skipping_sets)
    if folder is None:
        return None, None
    adapter = SkipAdapter.load(user_path(folder, "correction.path"))
    size = sum(tensor.nbytes for tensor in adapter.tensors.values())
    return adapter, {"path": folder, "bytes": size, **adapter.record}


def combined(adapters: Sequence[SkipAdapter]) -> SkipAdapter:
    """Return one adapter with the sets of several adapters of the same model, which must have no
    LoRA.
    """
    kept_sets: list[tuple[int, ...]] = []
    tensors: dict[str, Tensor] = {}
    for adapter in adapters:
        for name, tensor in adapter.tensors.items():
            kind, index, rest = name.split(".", 2)
            tensors[f"{kind}.{int(index) + len(kept_sets)}.{rest}"] = tensor
        kept_sets += adapter.kept_sets
    return SkipAdapter(adapters[0].num_layers, tuple(kept_sets), tensors)


def zero_adapter(
    model: PreTrainedModel, kept_sets: Sequence[tuple[int, ...]], shape: PatchShape
) -> SkipAdapter:
    """Return an adapter whose patches change nothing; kind none and folded have no patches."""
    num_layers = shallow_view.num_layers(model)
    hidden_size = model.config.get_text_config(decoder=True).hidden_size
    tensors = {
        f"patch.{index}.{layer}.{name}": tensor
        for index, kept in enumerate(kept_sets if shape.kind in KINDS else ())
        for layer in gaps(kept, num_layers)
        for name, tensor in GapPatch(shape.kind, hidden_size, shape.rank).state_dict().items()
    }
    return SkipAdapter(num_layers, tuple(kept_sets), tensors)


def timing_adapter(
    model: PreTrainedModel, kept_sets: Sequence[tuple[int, ...]], shape: PatchShape
) -> SkipAdapter | None:
    """Return patches that change nothing and cost the time of others, or None for a kind without
    such cost.
    """
    num_layers = shallow_view.num_layers(model)
    corrected = [kept for kept in dict.fromkeys(kept_sets) if len(kept) < num_layers]
    return zero_adapter(model, corrected, shape) if shape.kind in KINDS and corrected else None


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of one layer by module and by the rest of their name."""
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        modules[module][part] = tensor
    return modules


def with_linears(layer: nn.Module, changes: Mapping[str, Mapping[str, Tensor]]) -> nn.Module:
    """Return a copy of a layer in which the modules at some paths have changed weights; see
    `changed_linear`.
    """
    if not changes:
        return layer
    replaced: dict[nn.Module, nn.Module] = {}
    for path, parts in changes.items():
        module = layer.get_submodule(path)
        replaced[module] = changed_linear(module, parts)
    return shallow_view.substituted(layer, replaced.get)


def changed_linear(module: nn.Module, parts: Mapping[str, Tensor]) -> nn.Module:
    """Return a layer of the class of `module` with its weights changed by a fold (weight, bias) and
    LoRA (A, B).
    """
    if type(module) not in (nn.Linear, Conv1D):
        raise UsageError(
            f"the skip adapter changes the weights of linear layers, and {type(module).__name__}"
            " has none that can be changed; use an adapter with patches of kind full or low_rank,"
            " and no model.quantization"
        )
    source: Any = module
    transposed = type(module) is Conv1D  # [in, out]
    weight = source.weight.detach()
    # The copy is aligned in memory, and the bits of a product can depend on that: an export must
    # equal the view.
    wide = (weight.t() if transposed else weight).to(torch.float32, copy=True)
    bias = None if source.bias is None else source.bias.detach().to(torch.float32, copy=True)
    if "weight" in parts:
        fold = parts["weight"].to(wide)
        wide, bias = wide + fold.t() @ wide, None if bias is None else bias + bias @ fold
    if "A" in parts:
        wide = wide + parts["B"].to(wide) @ parts["A"].to(wide)
    if "bias" in parts:
        bias = parts["bias"].to(wide) + (0 if bias is None else bias)
    changed = {"weight": (wide.t() if transposed else wide).contiguous(), "bias": bias}
    parameters = {
        name: None if tensor is None else nn.Parameter(tensor.to(weight.dtype), requires_grad=False)
        for name, tensor in changed.items()
    }
    return shallow_view.with_attributes(module, lambda part: {"_parameters": parameters})
