"""`ulskip export`: which format, which target, and what is said when it is done. Imports no torch before it must."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ulskip_cli import config as configuration
from ulskip_cli.errors import UsageError, one_of
from ulskip_cli.export import plans, target
from ulskip_cli.memory_plan import parse_bytes
from ulskip_cli.plan import Plan

if TYPE_CHECKING:
    from ulskip_cli.results import Row
    from ulskip_cli.schema import Config

FORMATS = ("hf", "gguf", "mergekit", "schedule")
_FILES = {"gguf": ("model", ".gguf"), "mergekit": ("mergekit", ".yaml"), "schedule": ("schedule", ".json")}


@dataclass(frozen=True)
class Request:
    """The command's options.

    Attributes:
        to: a folder; for formats of one file the file, or a folder for it.
        format: one of FORMATS.
        results: where rows for the model card are looked for; None: where runs write.
        shard_size: the most of one weights file, `5GB`.
        check: hold what was written against the view; None: where both fit into memory.
    """

    to: Path
    format: str = "hf"
    results: Path | None = None
    shard_size: str = "5GB"
    check: bool | None = None


def export(overrides: Sequence[str], config_dir: Path | None, request: Request) -> "Row":
    """Carry an export out.

    Returns:
        The record of what was written; `to` says where.

    Raises:
        UsageError: it cannot be served; nothing is written.
        RunError: what was written is not the view; nothing is kept.
    """
    one_of("--format", request.format, FORMATS)
    shard_bytes = parse_bytes(request.shard_size, "--shard-size ")
    config = configuration.compose(overrides, config_dir)
    if request.format != "hf":
        file = _file(request)
        target.check_file(file)
        return _gguf(config, file, request, overrides) if request.format == "gguf" else _text(config, file, request, overrides)
    if request.results is not None and not request.results.is_dir():
        raise UsageError(f"--results: no folder at {request.results}")
    target.check_folder(request.to)
    plans.one_stage(plans.plan_of(config))
    from ulskip_cli.export.run import Options
    from ulskip_cli.export.run import export as export_checkpoint
    from ulskip_cli.report.live import Bars

    results = request.results or Path(config.results_dir)
    with Bars() as bars:
        return export_checkpoint(config, Options(request.to, shard_bytes, results, request.check, overrides), bars)


def lines(record: "Row") -> list[str]:
    """What a person is told."""
    told = [f"{len(record['kept_layers'])} of {record['num_layers']} layers, written to {record['to']}"]
    if record.get("prefill"):
        told[0] += f"/, and all of them to {record['to']}/{record['prefill']}/: SERVING.md says how the two are used together"
    if record.get("total_bytes"):
        told.append(f"{record['parameters']:,} parameters, {record['total_bytes'] / 2**20:,.1f} MiB")
    if record.get("checked"):
        told.append(f"checked: {record['checked']}")
    if "results" in record:
        rows = record["results"]
        told.append(f"the card has {len(rows)} measured rows" + (f": {', '.join(rows)}" if rows else "; --results says where"))
    return told


def _file(request: Request) -> Path:
    stem, suffix = _FILES[request.format]
    if request.to.suffix in (suffix, {".yaml": ".yml"}.get(suffix)):
        return request.to
    return request.to / f"{stem}{suffix}"


def _text(config: "Config", file: Path, request: Request, overrides: Sequence[str]) -> "Row":
    """A schedule or a merge recipe: no weight is looked at."""
    plan: Plan = plans.plan_of(config)
    if request.format == "mergekit":
        text = plans.mergekit(config, plans.one_stage(plan), overrides)
    else:
        text = plans.schedule_of(config, plan, overrides).to_json()
    with target.staged_file(file) as staging:
        staging.write_text(text, "utf-8")
    return {"to": str(file), "kept_layers": list(plan.kept_layers), "num_layers": plan.num_layers}


def _gguf(config: "Config", file: Path, request: Request, overrides: Sequence[str]) -> "Row":
    """A file of one stage's layers; the pair's prefill half is the model as it is."""
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise UsageError("--format gguf needs the package gguf; get it with: pip install gguf")
    plans.one_stage(plans.plan_of(config))
    from ulskip_cli.export.run import Options, export_gguf
    from ulskip_cli.report.live import Bars

    options = Options(file, parse_bytes(request.shard_size, "--shard-size "), Path(), request.check, overrides)
    with Bars() as bars:
        return export_gguf(config, options, bars)
