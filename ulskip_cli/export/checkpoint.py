"""Export of the kept layers as a folder that transformers loads: config, weights, tokenizer and
model card.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.record import Row
from ulskip_cli.export import card, recipe, staging
from ulskip_cli.export.config import CONFIG, read_config, shallow_config
from ulskip_cli.export.request import ResolvedExport
from ulskip_cli.export.verify import verify_checkpoint
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.checkpoint import COMPANIONS, folder_of
from ulskip_cli.inference.loading import LoadedModel, load
from ulskip_cli.inference.skip_adapter import load_adapter
from ulskip_cli.strategies.plan import is_trained_for

RECORD_VERSION = 1
_SAMPLE_BYTES = 1024


@dataclass(frozen=True)
class KeptLayers:
    """The model of an export, and the view of its kept layers that the export stores."""

    source: Path  # the folder of the model's files
    source_config: PreTrainedConfig
    loaded: LoadedModel
    view: PreTrainedModel
    config: dict[str, Any]  # the config.json of the view
    skip_adapter: Row | None  # the entry in a row of the skip adapter that changes the view


def load_kept(point: ResolvedExport, progress: ProgressCallback) -> KeptLayers:
    """Load the model and make its view; raise UsageError if no ordinary checkpoint can contain
    it.
    """
    model, kept, trusted = (
        point.config.model,
        point.plan.kept_layers,
        point.config.model.trust_remote_code,
    )
    progress.phase("load the model", 0)
    source = folder_of(model)
    if point.to.resolve() == source.resolve():
        raise UsageError(
            f"expected --to outside the exported model, got the model's folder {point.to}; use"
            " another folder"
        )
    source_config = read_config(source, trusted)
    adapter, entry = load_adapter(point.config, point.plan)
    loaded = load(model)
    if any(parameter.is_meta for parameter in loaded.model.parameters()):
        raise UsageError(
            "expected a model that fits into memory, got weights that"
            f" model.device_map={model.device_map} offloads; use --format mergekit"
        )
    view = (
        shallow_view.shallow_view(loaded.model, kept)
        if adapter is None
        else adapter.view(loaded.model, kept)
    )
    config = shallow_config(source_config, source, view, kept, trusted)
    return KeptLayers(source, source_config, loaded, view, config, entry)


def export_checkpoint(point: ResolvedExport, progress: ProgressCallback) -> Row:
    """Write the kept layers as a checkpoint, and for a pair also the full model; return the record
    of the export.

    The target stays unchanged if the model cannot be exported (UsageError) or the export differs
    from the view (RunError).
    """
    plan, model = point.plan, point.config.model
    with staging.staged(point.to, is_folder=True) as folder:
        exported = load_kept(point, progress)
        full, notes = exported.loaded.model, exported.loaded.notes
        progress.phase(f"write {plan.num_kept} layers", 0)
        _write_model(point, exported.source, exported.view, exported.config, folder)
        if point.is_pair:
            every = range(plan.num_layers)
            config = shallow_config(
                exported.source_config, exported.source, full, every, model.trust_remote_code
            )
            progress.phase(f"write {plan.num_layers} layers", 0)
            _write_model(point, exported.source, full, config, folder / card.PREFILL)
            (folder / card.SERVING).write_text(
                card.serving_page(plan, exported.skip_adapter is not None), "utf-8"
            )
        (folder / recipe.SCHEDULE).write_text(recipe.schedule_file(point).to_json(), "utf-8")
        parameters = list(exported.view.parameters())  # tied ones once
        facts = card.CardFacts(
            parameters=sum(parameter.numel() for parameter in parameters),
            total_bytes=sum(parameter.nbytes for parameter in parameters),
            checked=verify_checkpoint(point, exported.view, folder, progress),
            training=notes["training"],
            trained_for_these=is_trained_for(notes["trained_for"], plan),
            quantization=notes["quantization"],
            license=card.source_license(exported.source),
            records=card.matching_records(
                point.results, model, plan, notes["training"], exported.skip_adapter
            ),
            skip_adapter=exported.skip_adapter,
        )
        card.model_card(point, facts).save(folder / card.CARD)
        record = _record(point, facts, folder)
        (folder / staging.RECORD).write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
    return {**record, "to": str(point.to)}


def _write_model(
    point: ResolvedExport,
    source: Path,
    model: PreTrainedModel,
    config: dict[str, Any],
    folder: Path,
) -> None:
    """Save a model with a given config.json and the other files of its source."""
    model.save_pretrained(folder, max_shard_size=point.max_shard_bytes)
    for file in folder.glob(
        "*.safetensors"
    ):  # safetensors creates files that only their owner can read
        file.chmod(folder.stat().st_mode & 0o666)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    for pattern in (
        *COMPANIONS,
        *(["*.py"] if point.config.model.trust_remote_code else []),
    ):  # trusted code only
        for file in filter(Path.is_file, source.glob(pattern)):
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def weights_digest(folder: Path) -> str:
    """Return a hash of names, types, shapes and first bytes of all tensors in a folder's
    safetensors.

    `ulskip_vllm/pair_export.py` computes the same hash to check that two servers hold the models of
    one pair.
    """
    tensors = []
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            for name, entry in json.loads(stream.read(size)).items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    stream.seek(8 + size + start)
                    tensors.append(
                        (
                            name,
                            entry["dtype"],
                            entry["shape"],
                            stream.read(min(end - start, _SAMPLE_BYTES)).hex(),
                        )
                    )
    return hashlib.sha256(json.dumps(sorted(tensors)).encode()).hexdigest()


def _record(point: ResolvedExport, facts: card.CardFacts, folder: Path) -> Row:
    plan, model = point.plan, point.config.model
    models = {"decode": folder, "prefill": folder / card.PREFILL}
    return {
        "record_version": RECORD_VERSION,
        "made_by": point.made_by,
        "model": {**model.plain(), "fingerprint": fingerprint(model)},
        "skip_adapter": point.skip_adapter,
        "strategy": plan.strategy,
        "num_layers": plan.num_layers,
        "kept_layers": list(plan.kept_layers),
        "prompt_layers": plan.prompt_layers,
        "prefill": card.PREFILL if point.is_pair else None,
        "weights_digest": {
            role: weights_digest(part) for role, part in models.items() if part.is_dir()
        },
        "parameters": facts.parameters,
        "total_bytes": facts.total_bytes,
        "checked": facts.checked,
        "training": facts.training,
        "results": [record.id for record in facts.records],
        # A later export may replace these files only.
        "files": sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
        ),
    }
