"""One export: plan -> names -> shards -> config, tokenizer, card -> check -> rename."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig

from ulskip_cli import views
from ulskip_cli.errors import UsageError
from ulskip_cli.export import card, check, plans, shape, target, tensors
from ulskip_cli.export.matching import matching
from ulskip_cli.export.naming import renamed
from ulskip_cli.models.checkpoint import COMPANIONS, folder_of
from ulskip_cli.models.facts import describe, fingerprint
from ulskip_cli.models.load import load, source_notes
from ulskip_cli.plan import Plan, is_trained_for
from ulskip_cli.progress import Progress
from ulskip_cli.results import Row
from ulskip_cli.schema import Config

RECORD_VERSION = 1
_MERGED = ".merged"
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Options:
    """What a configuration does not say.

    Attributes:
        to: the folder, or for one-file formats the file.
        shard_bytes: the most of one weights file.
        results: where rows for the card are looked for.
        check: hold the export against the view; None: where both fit into memory.
        overrides: as they were given, for the record.
    """

    to: Path
    shard_bytes: int
    results: Path
    check: bool | None = None
    overrides: Sequence[str] = ()


def export(config: Config, options: Options, progress: Progress) -> Row:
    """Write the kept layers of a model as a checkpoint, and the full model beside it where that encodes the prompts.

    Returns:
        The record that lies beside the weights as ulskip_export.json.

    Raises:
        UsageError: the model, the schedule or the target does not allow it; nothing is written.
        RunError: what was written is not the view, so it was not kept.
    """
    refuse(config)
    plan = plans.one_stage(plans.plan_of(config))
    pair = plan.prompt_layers == "all" and not plan.keeps_all
    with target.staged_folder(options.to) as staging:
        progress.phase("read the model", 0)
        source = _source(config, staging)
        if options.to.resolve() == source.resolve():
            raise UsageError(f"--to {options.to} is the model that is exported; give another folder")
        made = _write(config, source, plan.kept_layers, staging, options, progress)
        if pair:
            _write(config, source, range(plan.num_layers), staging / card.PREFILL, options, progress)
            (staging / card.SERVING).write_text(card.serving(plan), "utf-8")
        checked = _checked(config, plan, made, staging, options, progress)
        about = _about(config, plan, source, made, checked, options)
        (staging / card.CARD).write_text(card.card(about), "utf-8")
        (staging / plans.FILE).write_text(plans.schedule_of(config, plan, options.overrides).to_json(), "utf-8")
        shutil.rmtree(staging / _MERGED, ignore_errors=True)
        record = {
            "record_version": RECORD_VERSION,
            "made_by": about.made_by,
            "model": {**asdict(config.model), "fingerprint": fingerprint(config.model)},
            "strategy": plan.strategy,
            "num_layers": plan.num_layers,
            "kept_layers": list(plan.kept_layers),
            "prompt_layers": plan.prompt_layers,
            "prefill": card.PREFILL if pair else None,
            "parameters": made.parameters,
            "total_bytes": made.total_bytes,
            "checked": checked,
            "training": about.training,
            "results": [row["id"] for row in about.rows],
            "files": sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file()),
        }
        (staging / target.RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return {**record, "to": str(options.to)}


def export_gguf(config: Config, options: Options, progress: Progress) -> Row:
    """Write the kept layers as one GGUF file, read it back and hold it against the view.

    Raises:
        UsageError: the model is not Llama-shaped, or the target does not allow it; nothing is written.
        RunError: what was read back is not the view, so it was not kept.
    """
    from ulskip_cli.export import gguf_file

    refuse(config)
    plan = plans.one_stage(plans.plan_of(config))
    with target.staged_file(options.to) as staging, tempfile.TemporaryDirectory(dir=staging.parent, prefix=".ulskip-") as name:
        folder = Path(name) / "hf"
        source = _source(config, Path(name))
        made = _write(config, source, plan.kept_layers, folder, options, progress)
        progress.phase("write gguf", 0)
        gguf_file.write(folder, staging, f"{Path(plans.model_name(config)).name}, {plan.num_kept} of {plan.num_layers} layers")
        checked = "not read back, as asked"
        if options.check is not False:
            progress.phase("read it back", 0)
            loaded = load(config.model)
            assert loaded.tokenizer is not None
            checked = gguf_file.check(staging, views.shallow_view(loaded.model, plan.kept_layers), loaded.tokenizer)
    return {
        "to": str(options.to),
        "num_layers": plan.num_layers,
        "kept_layers": list(plan.kept_layers),
        "parameters": made.parameters,
        "total_bytes": options.to.stat().st_size,
        "checked": checked,
    }


def refuse(config: Config) -> None:
    """What cannot be exported, before anything is read.

    Raises:
        UsageError: names it.
    """
    if config.model.source == "random":
        raise UsageError("model=random has no weights worth an export; give a pretrained model")
    if config.model.quantization:
        raise UsageError("export writes plain weights; leave model.quantization out, and quantize what was exported")
    if config.decoding.draft_tokens:
        raise UsageError("a drafting model is the view and the full model together; export with decoding.draft_tokens=0")


def _source(config: Config, staging: Path) -> Path:
    """The folder with the model's files; an adapter is merged first, in memory, into a folder that goes again."""
    folder = folder_of(config.model)
    if not config.model.adapter:
        return folder
    merged = staging / _MERGED
    load(config.model).model.save_pretrained(merged)
    _copy_companions(config, folder, merged)
    return merged


def _write(
    config: Config, source: Path, kept: Sequence[int], folder: Path, options: Options, progress: Progress
) -> tensors.Written:
    """One checkpoint: config, weights, tokenizer, generation config."""
    dtype = None if config.model.dtype == "auto" else config.model.dtype
    trusted = config.model.trust_remote_code
    values, num_layers = shape.shallow_config(source, kept, dtype, trusted)
    folder.mkdir(exist_ok=True)
    (folder / shape.CONFIG).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
    _copy_companions(config, source, folder)
    if not (folder / _GENERATION).is_file():
        GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder, trust_remote_code=trusted)).save_pretrained(
            folder
        )
    reader = tensors.Source(source)
    names = renamed(reader.files, num_layers, kept)
    begin = partial(progress.phase, f"write {len(kept)} layers")
    return tensors.write(reader, names, None if dtype is None else getattr(torch, dtype), folder, options.shard_bytes, begin)


def _copy_companions(config: Config, source: Path, folder: Path) -> None:
    """What goes with weights wherever they go; code only where it may run."""
    for pattern in (*COMPANIONS, *(["*.py"] if config.model.trust_remote_code else [])):
        for file in source.glob(pattern):
            if file.is_file():
                copy = folder / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def _checked(config: Config, plan: Plan, made: tensors.Written, staging: Path, options: Options, progress: Progress) -> str:
    """How the export was held against the view, in words."""
    structure = "a model built from the config has the view's modules, tensors and settings"
    if options.check is False:
        return f"{structure}; logits were not compared, as asked"
    total = describe(config.model).total_bytes or made.total_bytes * plan.num_layers // plan.num_kept
    if options.check is None and not check.fits(total, total * plan.num_kept // plan.num_layers):
        return f"{structure}; logits were not compared, since model and export do not fit into memory together"
    progress.phase("compare with the view", 1)
    loaded = load(config.model)
    compared = check.compare(loaded.model, plan.kept_layers, staging, config.model.trust_remote_code)
    return (
        f"{structure}; loaded by transformers, its logits at {compared.positions} positions of {compared.prompts} random "
        f"prompts and {compared.tokens} greedy tokens after them equal the view's, bit for bit"
    )


def _about(config: Config, plan: Plan, source: Path, made: tensors.Written, checked: str, options: Options) -> card.About:
    notes = source_notes(config.model)
    return card.About(
        name=plans.model_name(config),
        is_hub=config.model.source == "hf" and not Path(config.model.path).expanduser().exists(),
        revision=config.model.revision,
        plan=plan,
        training=notes["training"],
        trained_for_these=is_trained_for(notes["trained_for"], plan),
        dtype="the checkpoint's own type" if config.model.dtype == "auto" else config.model.dtype,
        quantization=notes["quantization"],
        total_bytes=made.total_bytes,
        parameters=made.parameters,
        checked=checked,
        rows=matching(options.results, config.model, plan, notes["training"]),
        results=options.results,
        made_by=plans.made_by(options.overrides),
        license=card.license_of(source),
    )
