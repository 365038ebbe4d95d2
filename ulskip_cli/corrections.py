"""Corrections of the hidden states after skipped layers. They act in decode steps only, and the
model stays unchanged.

`core/correction.py` is the interface. `inference/patch_fit.py` computes patches, and
`training/adapter_loss.py` trains skip adapters: folders with patches and LoRA, one for each set of
kept layers (docs/adapters.md). This module has their options, and reads adapter.json for plans.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.correction import KINDS, PATCHES, AdapterKind, Correction, Kind, PatchKind
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.fingerprint import folder_fingerprint
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.options import Stored, load_json, option, parse

RECORD = "adapter.json"


class Patch(Correction):
    """Patches that a run computes, of a kind in `core/correction.py`."""

    is_fitted = True

    kind: Kind = option("full", "; ".join(f"{name}: {kind.text}" for name, kind in PATCHES.items()))
    responses: Literal["auto", "reference", "own", "both"] = option(
        "auto",
        "responses that patches are fitted on; auto: the full model's own answers too if the"
        " references are few",
    )

    @property
    def label(self) -> str:
        """The kind of the patches."""
        return self.kind

    def needs(self) -> frozenset[Need]:
        """Return the kind of patches that the engine has to support."""
        is_folded = PATCHES[self.kind].is_folded
        return frozenset({Need.FOLDED_PATCHES if is_folded else Need.PATCHES})

    def patch_kind(self, model: ModelConfig) -> PatchKind:
        """Return the kind of the patches."""
        return PATCHES[self.kind]


class AdapterBase(Stored):
    """The model that a skip adapter belongs to."""

    fingerprint: str
    model: str | None = None


class AdapterRecord(Stored):
    """The keys of adapter.json that a plan reads."""

    base: AdapterBase
    kept_sets: tuple[tuple[int, ...], ...]
    kind: AdapterKind


def read_record(folder: Path, model: ModelConfig, key: str = "correction.path") -> AdapterRecord:
    """Read the record of a skip adapter, whose folder is the value of `key`; raise UsageError if it
    is missing or belongs to another model.
    """
    file = folder / RECORD
    try:
        record = parse(AdapterRecord, load_json(file, "the record of a skip adapter"), file=file)
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
    """Skip adapters of the model; a run uses the one for its kept layers."""

    path: tuple[str, ...] = option(
        ..., "folders of skip adapters, one for each ratio", min_length=1
    )

    @property
    def label(self) -> str:
        """The word for skip adapters."""
        return "adapter"

    def needs(self) -> frozenset[Need]:
        """Return that the engine has to support skip adapters."""
        return frozenset({Need.ADAPTER})

    def patch_kind(self, model: ModelConfig) -> PatchKind:
        """Return the kind of the patches; raise UsageError if a folder belongs to another model, or
        the kinds differ.
        """
        kinds = {record.kind for record in self._records(model)}
        if len(kinds) > 1:
            raise UsageError(
                "expected adapters in correction.path with patches of one kind, got"
                f" {' and '.join(sorted(kinds))}; name only adapters of one kind"
            )
        return KINDS[kinds.pop()]

    def folder_for(self, model: ModelConfig, kept_sets: Collection[tuple[int, ...]]) -> str | None:
        """Return the folder of the adapter for these layers; raise UsageError if there is none."""
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
        """Return a hash of the records and weights of all folders."""
        return " ".join(
            folder_fingerprint(user_path(name, "correction.path") / RECORD) for name in self.path
        )

    def _records(self, model: ModelConfig) -> list[AdapterRecord]:
        return [read_record(user_path(name, "correction.path"), model) for name in self.path]


def _listed(layers: Sequence[int]) -> str:
    return f"[{','.join(map(str, layers))}]"
