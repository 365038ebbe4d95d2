"""Export of the kept layers as a folder that transformers loads: config, weights, tokenizer and model card."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig

from ulskip_cli.core.config_schema import ModelConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.record import Row
from ulskip_cli.export import card, recipe, staging
from ulskip_cli.export.config import CONFIG, check_tensors, shallow_config
from ulskip_cli.export.merged_adapter import merged_reader
from ulskip_cli.export.request import ResolvedExport
from ulskip_cli.export.tensors import CheckpointReader, WrittenWeights, shallow_names, weights_digest, write_shards
from ulskip_cli.export.verify import verify_checkpoint
from ulskip_cli.inference.checkpoint_files import COMPANIONS, folder_of
from ulskip_cli.inference.loading import load, source_notes
from ulskip_cli.inference.skip_adapter import SkipAdapter, load_adapter
from ulskip_cli.strategies.plan import is_trained_for

RECORD_VERSION = 1
_GENERATION = "generation_config.json"


def export_checkpoint(point: ResolvedExport, progress: ProgressCallback) -> Row:
    """Write the kept layers as a checkpoint, and for a pair also the full model; return the record of the export.

    The target stays unchanged if the model cannot be exported (UsageError) or the export differs from the view (RunError).
    """
    plan = point.plan
    with staging.staged(point.to, is_folder=True) as folder:
        progress.phase("read the model", 0)
        source = source_folder(point.config.model, scratch=folder.parent)
        if point.to.resolve() == source.resolve():
            raise UsageError(f"expected --to outside the exported model, got the model's folder {point.to}; use another folder")
        adapter, adapter_entry = load_adapter(point.config.model, plan)
        notes = source_notes(point.config.model)
        weights = _write_model(point, source, plan.kept_layers, folder, progress, adapter)
        if point.is_pair:
            _write_model(point, source, range(plan.num_layers), folder / card.PREFILL, progress)
            (folder / card.SERVING).write_text(card.serving_page(plan, adapter is not None), "utf-8")
        (folder / recipe.SCHEDULE).write_text(recipe.schedule_file(point).to_json(), "utf-8")
        checked = verify_checkpoint(point, folder, weights.total_bytes, progress, adapter)
        facts = card.CardFacts(
            parameters=weights.parameters,
            total_bytes=weights.total_bytes,
            checked=checked,
            training=notes["training"],
            trained_for_these=is_trained_for(notes["trained_for"], plan),
            quantization=notes["quantization"],
            license=card.source_license(source),
            rows=card.matching_rows(point.results, point.config.model, plan, notes["training"], adapter_entry),
            skip_adapter=adapter_entry,
        )
        card.model_card(point, facts).save(folder / card.CARD)
        record = _record(point, facts, folder)
        (folder / staging.RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return {**record, "to": str(point.to)}


def source_folder(model: ModelConfig, scratch: Path) -> Path:
    """Return the folder with the model's files; a model with an adapter is merged and saved in `scratch`."""
    folder = folder_of(model)
    if not model.adapter:
        return folder
    merged = scratch / "merged-model"
    load(model).model.save_pretrained(merged)
    _copy_companions(model, folder, merged)
    return merged


def _write_model(
    point: ResolvedExport,
    source: Path,
    kept: Sequence[int],
    folder: Path,
    progress: ProgressCallback,
    adapter: SkipAdapter | None = None,
) -> WrittenWeights:
    trusted = point.config.model.trust_remote_code
    config, num_layers = shallow_config(source, kept, point.dtype, trusted)
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    _copy_companions(point.config.model, source, folder)
    if not (folder / _GENERATION).is_file():
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        GenerationConfig.from_model_config(model_config).save_pretrained(folder)
    plain = CheckpointReader(source, getattr(torch, point.dtype) if point.dtype else None)
    check_tensors(source, point.model_name, trusted)
    reader = plain if adapter is None else merged_reader(point, source, plain, adapter)
    new_names = shallow_names(reader.files, num_layers, kept)
    begin = partial(progress.phase, f"write {len(kept)} layers")
    return write_shards(reader, new_names, folder, point.max_shard_bytes, begin)


def _copy_companions(model: ModelConfig, source: Path, folder: Path) -> None:
    for pattern in (*COMPANIONS, *(["*.py"] if model.trust_remote_code else [])):  # code only if the user trusts it
        for file in filter(Path.is_file, source.glob(pattern)):
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _record(point: ResolvedExport, facts: card.CardFacts, folder: Path) -> Row:
    plan, model = point.plan, point.config.model
    models = {"decode": folder, "prefill": folder / card.PREFILL}
    return {
        "record_version": RECORD_VERSION,
        "made_by": point.made_by,
        "model": {**asdict(model), "fingerprint": fingerprint(model)},
        "skip_adapter": point.skip_adapter,
        "strategy": plan.strategy,
        "num_layers": plan.num_layers,
        "kept_layers": list(plan.kept_layers),
        "prompt_layers": plan.prompt_layers,
        "prefill": card.PREFILL if point.is_pair else None,
        "weights_digest": {role: weights_digest(part) for role, part in models.items() if part.is_dir()},
        "parameters": facts.parameters,
        "total_bytes": facts.total_bytes,
        "checked": facts.checked,
        "training": facts.training,
        "results": [row["id"] for row in facts.rows],
        # A later export may replace these files only.
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
    }
