"""Corrections, which repair the hidden states after skipped layers in decode steps, and patches,
maps of hidden states that stand in for these layers. The model stays unchanged.

A kind of patch is one class of `PATCHES`, from which follow choices, bytes, fit, training, storage
and export. Only methods that compute import torch. `inference/patch_fit.py` computes patches, and
`training/adapter_loss.py` trains skip adapters: folders with patches and LoRA, one for each set of
kept layers (docs/adapters.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.fingerprint import checkpoint_fingerprint
from ulskip_cli.core.model_metadata import ModelConfig, ModelFolder
from ulskip_cli.core.options import Choice, Stored, load_json, option, parse
from ulskip_cli.core.schedule import Layers

if TYPE_CHECKING:
    from torch import Tensor, nn

    # Of the positions of each batch: inputs and targets, each [count, hidden_size].
    Pairs = Iterable[tuple[Tensor, Tensor]]
    Parts = dict[str, Tensor]  # the tensors of a patch by name

ADAPTER_FILE = "adapter.json"  # of a skip adapter
_LEAST_VARIANCE = 1e-9  # of the inputs, as a share of their mean square


@dataclass(frozen=True)
class GapPatch:
    """A patch of one gap. A subclass is a kind of patch; the base class is the kind of an adapter
    without patches.

    A patch at a gap adds the output of `module` to the hidden states. A folded one is merged into
    the last linear layer before the gap: it adds `added` to that layer's output, and has no module.
    """

    name: ClassVar[str] = "none"
    text: ClassVar[str] = "LoRA alone"  # in help
    is_folded: ClassVar[bool] = False
    # True if a patch is a module at its gap, which decode steps compute and only ulskip can
    # run; False if an ordinary checkpoint can contain it.
    has_module: ClassVar[bool] = False

    parts: Parts  # the state of `module`, or the tensors of a folded patch
    # the linear layer that contains a folded patch: the number of its layer, and its path there
    address: tuple[int, str] = (0, "")

    @staticmethod
    def num_parameters(hidden_size: int) -> int:
        """Return how many parameters of one patch a decode step reads."""
        return 0

    @staticmethod
    def module(hidden_size: int) -> nn.Module:
        """Return a linear layer of zeros for a patch, [..., hidden_size] to the same shape.
        Training starts from it or from `solve`.
        """
        raise NotImplementedError

    @classmethod
    def solve(cls, pairs: Pairs, ridge: float, has_bias: bool = True) -> Self:
        """Fit a patch with the penalty `ridge`. A folded patch has no bias if its linear layer has
        none.
        """
        raise NotImplementedError

    def added(self, output: Tensor) -> Tensor:
        """Return what a folded patch adds to the output [..., out] of its layer."""
        raise NotImplementedError

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return weight [out, in] and bias [out] of a layer with a folded patch."""
        raise NotImplementedError


class Dense(GapPatch):
    """A map `h + W h + b` with a full matrix `W`."""

    name, text, has_module = "full", "a matrix for each gap", True

    @staticmethod
    def num_parameters(hidden_size: int) -> int:
        """Return the size of matrix and bias.

        >>> Dense.num_parameters(10)
        110
        """
        return (hidden_size + 1) * hidden_size

    @staticmethod
    def module(hidden_size: int) -> nn.Module:
        """Return a linear layer of zeros."""
        from torch import nn

        linear = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear

    @classmethod
    def solve(cls, pairs: Pairs, ridge: float, has_bias: bool = True) -> Self:
        """Regress the targets on the inputs."""
        parts = solve_ridge(pairs, ridge)
        return cls({"weight": parts["weight"].T, "bias": parts["bias"]})


class Folded(GapPatch):
    """A map `y + y F + b` of the output of a linear layer (arXiv:2505.02819)."""

    name, text, is_folded = "folded", "merged into the layer before it", True

    @classmethod
    def solve(cls, pairs: Pairs, ridge: float, has_bias: bool = True) -> Self:
        """Regress the targets on the inputs."""
        return cls(solve_ridge(pairs, ridge, has_bias))

    def added(self, output: Tensor) -> Tensor:
        """Return `y F + b` in the dtype of the output."""
        product = output @ self.parts["weight"].to(output)
        return product + self.parts["bias"].to(output) if "bias" in self.parts else product

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight and bias of `(I + F^T) (W x + c) + b`: W and c of the layer, F and b of
        the patch.
        """
        fold = self.parts["weight"].to(weight)
        if bias is not None:
            bias = bias + bias @ fold
        if "bias" in self.parts:
            added = self.parts["bias"].to(weight)
            bias = added if bias is None else bias + added
        return weight + fold.t() @ weight, bias


def solve_ridge(pairs: Pairs, ridge: float, has_bias: bool = True) -> Parts:
    """Return `weight` [inputs, outputs] and, with `has_bias`, `bias` [outputs] of `target = input
    weight + bias`; lambda is `ridge` times the mean diagonal of the Gram matrix.
    """
    import torch

    sums, count = list[torch.Tensor](), 0  # over all batches, so that none has to be kept
    for inputs, targets in pairs:
        inputs, targets = inputs.cpu().double(), targets.cpu().double()  # MPS has no float64
        terms = [inputs.T @ inputs, inputs.T @ targets, inputs.sum(0), targets.sum(0)]
        count += len(inputs)
        if not sums:
            sums = terms
            continue
        for total, term in zip(sums, terms, strict=True):
            total.add_(term)
    squares, cross, input_sum, target_sum = sums
    input_mean, target_mean, gram = input_sum / count, target_sum / count, squares
    if has_bias:  # centered, so that the ridge does not penalize the bias
        gram = gram - count * torch.outer(input_mean, input_mean)
        cross = cross - count * torch.outer(input_mean, target_mean)
    # Inputs that do not vary have a Gram matrix of rounding errors, which must not set the scale.
    least = _LEAST_VARIANCE * squares.diagonal().mean() + torch.finfo(torch.float64).tiny
    scale = gram.diagonal().mean().clamp_min(least)
    penalty = ridge * scale * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + penalty, cross)
    if not has_bias:
        return {"weight": weight}
    return {"weight": weight, "bias": target_mean - input_mean @ weight}


NO_PATCHES = GapPatch
PATCHES: Mapping[str, type[GapPatch]] = {kind.name: kind for kind in (Dense, Folded)}
KINDS: Mapping[str, type[GapPatch]] = {**PATCHES, NO_PATCHES.name: NO_PATCHES}
if TYPE_CHECKING:
    Kind = str
    AdapterKind = str
else:
    Kind = Literal[tuple(PATCHES)]
    AdapterKind = Literal[tuple(KINDS)]


class Correction(Choice):
    """A correction of hidden states. The base class corrects nothing."""

    is_fitted: ClassVar[bool] = False  # a run fits it on held-out examples

    @property
    def label(self) -> str:
        """The name in tables; empty without a correction."""
        return ""

    def patch_kind(self, model: ModelConfig) -> type[GapPatch]:
        """Return the kind of the patches; raise UsageError for an unsupported model."""
        return NO_PATCHES

    def folder_for(self, model: ModelConfig, kept_sets: Collection[Layers]) -> str | None:
        """Return the folder of the skip adapter to load, or None if there is none.

        `kept_sets` has the layers of each stage that skips some. Raises UsageError if the
        correction has adapters, but none for these layers.
        """
        return None

    def fingerprint(self) -> str:
        """Return a string that identifies the weights; empty without any."""
        return ""


class FittedPatches(Correction):
    """Patches that a run computes."""

    is_fitted = True

    kind: Kind = option("full", "; ".join(f"{name}: {kind.text}" for name, kind in PATCHES.items()))

    @property
    def label(self) -> str:
        """The kind of the patches."""
        return self.kind

    def patch_kind(self, model: ModelConfig) -> type[GapPatch]:
        """Return the kind."""
        return PATCHES[self.kind]


class AdapterModel(Stored):
    """The model that a skip adapter belongs to."""

    fingerprint: str
    model: str | None = None


class AdapterFile(Stored):
    """The keys of adapter.json that a plan reads."""

    base: AdapterModel
    kept_sets: tuple[tuple[int, ...], ...]
    kind: AdapterKind


def read_adapter_file(
    folder: Path, model: ModelConfig, key: str = "correction.path"
) -> AdapterFile:
    """Read the record of a skip adapter, whose folder is the value of `key`; raise UsageError if it
    is missing or belongs to another model.
    """
    file = folder / ADAPTER_FILE
    try:
        record = parse(AdapterFile, load_json(file, "the record of a skip adapter"), file=file)
    except UsageError as error:
        raise UsageError(
            f"{key}={folder} is no skip adapter: {error}; make one with `ulskip train"
            " train=adapter`"
        ) from None
    if record.base.fingerprint != ModelFolder(model).fingerprint:
        raise UsageError(
            f"expected {key}={folder} to be made for the weights of {model.label}, got"
            f" one for other weights ({record.base.model}); use its own model, or train an adapter"
            " for this one"
        )
    return record


class Adapter(Correction):
    """Skip adapters; a run uses the one for its kept layers."""

    path: tuple[str, ...] = option(
        ..., "folders of skip adapters, one for each ratio", min_length=1
    )

    @property
    def label(self) -> str:
        """The word for skip adapters."""
        return "adapter"

    def patch_kind(self, model: ModelConfig) -> type[GapPatch]:
        """Return the one kind; raise UsageError if kinds differ, or an adapter is of another
        model.
        """
        kinds = {record.kind for record in self._records(model)}
        if len(kinds) > 1:
            raise UsageError(
                "expected adapters in correction.path with patches of one kind, got"
                f" {' and '.join(sorted(kinds))}; name only adapters of one kind"
            )
        return KINDS[kinds.pop()]

    def folder_for(self, model: ModelConfig, kept_sets: Collection[tuple[int, ...]]) -> str | None:
        """Return the folder for these layers; raise UsageError if there is none."""
        records = self._records(model)
        if not kept_sets:
            return None
        for folder, record in zip(self.path, records, strict=True):
            if set(kept_sets) <= set(record.kept_sets):
                return folder
        known = [_listed(layers) for record in records for layers in sorted(record.kept_sets)]
        raise UsageError(
            f"expected the layers of the adapter in correction.path, {' or '.join(known)}, got"
            f" {' and '.join(map(_listed, sorted(kept_sets)))}; use strategy=custom"
            f" strategy.layers={known[0]}, or another adapter"
        )

    def fingerprint(self) -> str:
        """Hash the records and weights of all folders."""
        return " ".join(
            checkpoint_fingerprint(user_path(name, "correction.path") / ADAPTER_FILE)
            for name in self.path
        )

    def _records(self, model: ModelConfig) -> list[AdapterFile]:
        return [read_adapter_file(user_path(name, "correction.path"), model) for name in self.path]


def _listed(layers: Sequence[int]) -> str:
    return f"[{','.join(map(str, layers))}]"
