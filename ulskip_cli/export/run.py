"""Export a schedule in one of the formats. Only formats that contain weights import torch."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ulskip_cli.core.files import enough_space
from ulskip_cli.core.model_metadata import read_metadata
from ulskip_cli.core.progress import NullProgress, ProgressCallback
from ulskip_cli.experiments.record import Row
from ulskip_cli.export import recipe
from ulskip_cli.export.request import ExportRequest, ResolvedExport, resolve
from ulskip_cli.export.staging import staged


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
    text = (
        recipe.mergekit_recipe(point)
        if point.format == "mergekit"
        else recipe.schedule_file(point).to_json()
    )
    with staged(point.to, is_folder=False) as file:
        file.write_text(text, "utf-8")
    return {
        "to": str(point.to),
        "kept_layers": list(point.plan.kept_layers),
        "num_layers": point.plan.num_layers,
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
    if record.get("prefill"):
        lines.append(
            f"wrote the full model, which encodes the prompts, to {to}/{record['prefill']}; see"
            f" {to}/SERVING.md"
        )
    if record.get("total_bytes"):
        dtype = f" in {record['dtype']}" if record.get("dtype") else ""
        lines.append(
            f"{record['parameters']:,} parameters, {record['total_bytes'] / 2**20:,.1f} MiB{dtype}"
        )
    if record.get("checked"):
        lines.append(f"checked: {record['checked']}")
    if "results" in record:
        rows = record["results"]
        advice = (
            "none; run this configuration with `ulskip run` first, or name its folder with"
            " --results"
        )
        lines.append(f"result rows in the model card: {', '.join(rows) or advice}")
        lines.append(f"next: {shlex.join(['ulskip', 'run', f'model.path={to}', 'strategy=full'])}")
    return lines
