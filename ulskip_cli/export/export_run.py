"""Export in one of the formats: check the request, write into a scratch folder, then replace the
target. Only formats that contain weights import torch.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from ulskip_cli.core import config as configuration
from ulskip_cli.core.command_line import command_line, overrides_of
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.environment import __version__
from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import JsonObject, noticing_full_disk, replacing
from ulskip_cli.core.gguf_header import why_unsupported_by_gguf
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.point import Resolver
from ulskip_cli.strategies.plan import Plan

FORMATS = ("hf", "gguf", "schedule")
SCHEDULE = "schedule.json"
EXPORT_FILE = "ulskip_export.json"
_FILE_NAMES = {"gguf": "model.gguf", "schedule": SCHEDULE}
# An export in one file contains the mark near its beginning.
_MARK, _HEAD_BYTES = b"ulskip", 65536


@dataclass(frozen=True)
class ExportRequest:
    """The options of `ulskip export`."""

    to: Path  # a folder; for formats with one file, the file or its folder
    format: str = "hf"  # one of FORMATS
    check: bool | None = None  # compare with the kept layers; None: if both fit into memory


@dataclass(frozen=True)
class ResolvedExport:
    """A checked request with its configuration and plan."""

    config: Config
    folder: ModelFolder
    plan: Plan
    request: ExportRequest
    to: Path  # the folder, or the file for formats with one file
    made_by: str  # version and command
    adapter_folder: str | None  # of the adapter that is merged into the kept layers

    def next_command(self, has_chat: bool) -> str:
        """Return the line that evaluates the export on the task of the request; for a pair, which
        transformers cannot run, it evaluates the full model with the same layers skipped. The
        default task, translation, suits no chat model, so there the line answers a prompt.
        """
        config = self.config
        if not self.is_pair:
            config = config.replace(
                model=config.model.saved_in(self.to),
                strategy=configuration.preset("strategy", "full"),
                correction=configuration.preset("correction", "none"),
            )
        is_default_task = config.task == configuration.compose([], "run").task
        if not (has_chat and is_default_task):
            return command_line(config, "run")
        config = config.replace(task=configuration.preset("task", "jsonl"))
        return shlex.join(["ulskip", "generate", "PROMPT", *overrides_of(config, "generate")])

    @property
    def is_pair(self) -> bool:
        """True if the export has two models: one reads prompts with all layers, one decodes."""
        return self.plan.prompt_layers == "all" and not self.plan.keeps_all


def resolve_export(config: Config, request: ExportRequest) -> ResolvedExport:
    """Make the plan of a request; raise UsageError if the format cannot describe it. The format
    `schedule` has layers alone, so it drops the correction.
    """
    name = request.format
    made_by = f"ulskip {__version__}: {command_line(config, 'export')}"
    if name == "gguf" and find_spec("gguf") is None:
        raise UsageError("--format gguf requires the package gguf; run: pip install gguf")
    if name == "schedule":
        config = config.replace(correction=configuration.preset("correction", "none"))
    folder, plan = Resolver().schedule(config, f"export --format {name}")
    unsupported = why_unsupported_by_gguf(folder.config) if name == "gguf" else ""
    if unsupported:
        raise UsageError(
            f"--format gguf does not support this model ({unsupported}); use --format hf"
        )
    to = request.to
    if name != "hf" and to.suffix != Path(_FILE_NAMES[name]).suffix:
        to = to / _FILE_NAMES[name]
    adapter_folder = config.correction.folder_for(config.model, plan.sets_with_gaps)
    return ResolvedExport(config, folder, plan, request, to, made_by, adapter_folder)


def run_export(
    config: Config, request: ExportRequest, progress: ProgressCallback | None = None
) -> JsonObject:
    """Export a configuration and return a record for `summary`; `to` is the written folder or file.
    The target stays unchanged if the request or the model is invalid (UsageError), and if the
    result differs from the view (RunError).
    """
    export, progress = resolve_export(config, request), progress or ProgressCallback()
    kept, num_layers = list(export.plan.kept_layers), export.plan.num_layers
    record: JsonObject = {"to": str(export.to), "kept_layers": kept, "num_layers": num_layers}
    if export.config.correction != config.correction:
        record["omitted"] = config.correction.label
    with staged(export.to, request.format == "hf") as target:
        if export.to.exists():
            progress.note(f"replaces the earlier export {export.to}")
        return record | _write(export, target, progress)


def _write(export: ResolvedExport, target: Path, progress: ProgressCallback) -> JsonObject:
    """Write the format of the request, and return the keys that it adds to the record."""
    if export.request.format == "hf":
        from ulskip_cli.export.checkpoint import export_checkpoint

        return export_checkpoint(export, target, progress)
    if export.request.format == "gguf":
        from ulskip_cli.export.gguf import export_gguf

        return export_gguf(export, target, progress)
    target.write_text(schedule_text(export), "utf-8")
    return {}


def summary(record: JsonObject) -> list[str]:
    """Return the lines that describe an export; the keys of `record` depend on the format."""
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
    elif record.get("prompt_layers"):
        lines.append(f"these layers read the prompts too (prompt_layers={record['prompt_layers']})")
    if record.get("total_bytes"):
        dtype = f" in {record['dtype']}" if record.get("dtype") else ""
        size = f"{record['total_bytes'] / 2**20:,.1f} MiB{dtype}"
        lines.append(f"{record['parameters']:,} parameters, {size}")
        lines.append(f"checked: {record['checked']}")
    if "next" in record:
        lines.append(f"next: {record['next']}")
    return lines


def schedule_text(export: ResolvedExport) -> str:
    """Return the layers of a plan and their origin as JSON."""
    config, plan = export.config, export.plan
    fields = {
        "format": "ulskip-schedule",
        "format_version": 1,
        "num_layers": plan.num_layers,
        "kept_layers": plan.kept_layers,  # of the first steps
        "later_stages": [asdict(stage) for stage in plan.later_stages],
        "strategy": plan.strategy,
        "strategy_options": config.strategy.options(),
        "target_ratio": plan.target_speedup,  # null if the strategy ignores it
        "model": config.model.label,
        "made_by": export.made_by,
    }
    return f"{json.dumps(fields, indent=1, ensure_ascii=False)}\n"


def check_target(target: Path, is_folder: bool) -> None:
    """Raise UsageError if a target contains anything but an earlier export."""
    if not target.exists():
        return
    if target.is_dir() != is_folder:
        wanted, got = ("folder", "file") if is_folder else ("file", "folder")
        raise UsageError(f"expected a {wanted} for --to, got the {got} {target}")
    if not is_folder:
        with target.open("rb") as stream:
            if _MARK in stream.read(_HEAD_BYTES):
                return
        raise UsageError(
            f"expected a new file or an earlier export for --to, got {target}; use another path"
        )
    exported: set[str] = set()  # none without a readable record of an earlier export
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((target / EXPORT_FILE).read_text("utf-8"))
        exported = {EXPORT_FILE, *record["files"]}
    for path in target.rglob("*"):
        if not path.is_dir() and str(path.relative_to(target)) not in exported:
            raise UsageError(
                f"expected a new folder or an earlier export for --to, got {target} with"
                f" {path.name}; use another path"
            )


@contextlib.contextmanager
def staged(target: Path, is_folder: bool) -> Iterator[Path]:
    """Yield a path whose content replaces the target unless the block fails."""
    check_target(target, is_folder)
    with contextlib.ExitStack() as stack:
        try:
            staging = stack.enter_context(replacing(target.absolute()))
            if is_folder:
                staging.mkdir()
        except OSError as error:
            raise UsageError(
                f"cannot write to --to {target} ({reason(error, True)}); use another path"
            ) from None
        with noticing_full_disk(target):
            yield staging


def write_record(folder: Path, record: JsonObject) -> JsonObject:
    """Write the record of an export into its folder, and return it with `files`, those that a later
    export may replace (`check_target`).
    """
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    record = {**record, "files": files}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (folder / EXPORT_FILE).write_text(f"{text}\n", "utf-8")
    return record
