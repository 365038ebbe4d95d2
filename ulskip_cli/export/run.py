"""Export a schedule in one of the formats. Only formats that contain weights import torch."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import yaml

from ulskip_cli.core.files import enough_space
from ulskip_cli.core.model_metadata import find_config, read_metadata
from ulskip_cli.core.progress import NullProgress, ProgressCallback
from ulskip_cli.experiments.record import Row
from ulskip_cli.export.request import ExportRequest, ResolvedExport, resolve
from ulskip_cli.export.staging import staged
from ulskip_cli.strategies.custom import ScheduleFile, ScheduleStage

SCHEDULE = "schedule.json"


def export(
    overrides: Sequence[str],
    config_dir: Path | None,
    request: ExportRequest,
    progress: ProgressCallback | None = None,
) -> Row:
    """Export the schedule of a configuration and return a record; the record's key `to` is the
    written folder or file.

    The target stays unchanged if the request is invalid (UsageError) or the result differs from the
    view (RunError).
    """
    point, progress = resolve(overrides, config_dir, request), progress or NullProgress()
    if point.format == "hf":
        from ulskip_cli.export.checkpoint import export_checkpoint

        with enough_space(point.to, _bytes_of(point)):
            return export_checkpoint(point, progress)
    if point.format == "gguf":
        from ulskip_cli.export.gguf import export_gguf

        with enough_space(point.to, _bytes_of(point)):
            return export_gguf(point, progress)
    is_recipe = point.format == "mergekit"
    text = mergekit_recipe(point) if is_recipe else schedule_file(point).to_json()
    with staged(point.to, is_folder=False) as file:
        file.write_text(text, "utf-8")
    return {
        "to": str(point.to),
        "kept_layers": list(point.plan.kept_layers),
        "num_layers": point.plan.num_layers,
        "omitted": point.omitted,
    }


def _bytes_of(point: ResolvedExport) -> int:
    """Return the bytes of the kept layers and the rest of the model, or 0 if they are unknown."""
    metadata = read_metadata(point.config.model)
    skipped = set(range(metadata.num_layers)) - set(point.plan.kept_layers)
    layers = metadata.weights.layers if metadata.weights else ()
    return (metadata.total_bytes or 0) - sum(layers[i] for i in skipped if i < len(layers))


def summary(record: Row) -> list[str]:
    """Return the lines that describe an export on the terminal."""
    to = record["to"]
    lines = [f"wrote {len(record['kept_layers'])} of {record['num_layers']} layers to {to}"]
    if adapter := record.get("skip_adapter"):
        lines.append(f"merged the skip adapter {adapter} into them")
    if omitted := record.get("omitted"):
        lines.append(f"a schedule contains layers alone, without the correction ({omitted})")
    if record.get("prefill"):
        lines.append(
            f"wrote the full model, which encodes the prompts, to {to}/{record['prefill']}; see"
            f" {to}/SERVING.md"
        )
    if record.get("total_bytes"):
        dtype = f" in {record['dtype']}" if record.get("dtype") else ""
        size = f"{record['total_bytes'] / 2**20:,.1f} MiB{dtype}"
        lines.append(f"{record['parameters']:,} parameters, {size}")
        lines.append(f"checked: {record['checked']}")
    if "results" in record:
        advice = "none; run this configuration first, or name its folder with --results"
        lines.append(f"result rows in the model card: {', '.join(record['results']) or advice}")
        lines.append(f"next: {shlex.join(['ulskip', 'run', f'model.path={to}', 'strategy=full'])}")
    return lines


def schedule_file(point: ResolvedExport) -> ScheduleFile:
    """Return the plan as a schedule file, which `strategy.file` reads."""
    plan = point.plan
    return ScheduleFile(
        num_layers=plan.num_layers,
        kept_layers=plan.kept_layers,
        later_stages=tuple(ScheduleStage(**asdict(stage)) for stage in plan.later_stages),
        strategy=plan.strategy,
        strategy_options=point.config.strategy.options(),
        target_ratio=plan.target_speedup,
        ratio_basis=point.config.ratio_basis,
        prompt_layers="all" if plan.prompt_layers == "all" else "kept",
        model=point.model_name,
        made_by=point.made_by,
        unit=plan.unit,
    )


def mergekit_recipe(point: ResolvedExport) -> str:
    """Return the plan as a mergekit recipe in YAML: a passthrough merge of slices with exclusive
    ends.
    """
    plan, model = point.plan, point.config.model
    path = model.path if model.source == "hf" else str(find_config(model).parent)
    slices = [
        {"sources": [{"model": path, "layer_range": list(ends)}]}
        for ends in layer_ranges(plan.kept_layers)
    ]
    dtype = point.dtype
    if dtype is None:
        source = json.loads(find_config(model).read_text("utf-8"))
        dtype = str(source.get("dtype") or source.get("torch_dtype") or "float32")
    recipe = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return (
        f"# {point.made_by}\n# {plan.strategy}: {plan.num_kept} of {plan.num_layers} layers\n{text}"
    )


def layer_ranges(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Group adjacent layers into half-open ranges.

    >>> layer_ranges((0, 1, 4, 6, 7))
    [(0, 2), (4, 5), (6, 8)]
    """
    gaps = [(a + 1, b) for a, b in pairwise(kept) if b != a + 1]
    starts, ends = [kept[0], *(b for _, b in gaps)], [*(a for a, _ in gaps), kept[-1] + 1]
    return list(zip(starts, ends, strict=True))
