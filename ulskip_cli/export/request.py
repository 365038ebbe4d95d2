"""The request of an export, which is checked before any weight is read. Imports no torch."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ulskip_cli.core import capabilities
from ulskip_cli.core import config as configuration
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.environment import __version__
from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.model_metadata import read_metadata
from ulskip_cli.export import staging
from ulskip_cli.strategies.memory import parse_bytes
from ulskip_cli.strategies.plan import Plan, make_plan, needs

FORMATS = ("hf", "gguf", "mergekit", "schedule")
# Kinds of patches that a model without ulskip can contain; LoRA is merged too.
MERGEABLE = ("folded", "none")
_FILE_NAMES = {"gguf": "model.gguf", "mergekit": "mergekit.yaml", "schedule": "schedule.json"}


@dataclass(frozen=True)
class ExportRequest:
    """The options of `ulskip export`."""

    to: Path  # a folder; for formats with one file, the file or its folder
    format: str = "hf"  # one of FORMATS
    results: Path | None = None  # the results folder for the model card; None: `results_dir`
    shard_size: str = "5GB"  # maximal size of a weights file
    check: bool | None = None  # compare with the kept layers; None: if both fit into memory


@dataclass(frozen=True)
class ResolvedExport:
    """A checked request with its configuration and plan."""

    config: Config
    plan: Plan
    format: str
    to: Path  # the folder, or the file for formats with one file
    results: Path
    max_shard_bytes: int
    check: bool | None
    made_by: str  # version and command
    skip_adapter: str | None  # folder of the adapter that is merged into the kept layers
    omitted: str  # the correction that a schedule does not contain

    @property
    def model_name(self) -> str:
        """The hub id or folder of the model, or the name of a bundled model."""
        return self.config.model.label

    @property
    def is_pair(self) -> bool:
        """True if prompts run through more layers than decode steps."""
        return self.plan.prompt_layers == "all" and not self.plan.keeps_all

    @property
    def dtype(self) -> str | None:
        """The configured dtype; None means the source's dtype."""
        return None if self.config.model.dtype == "auto" else self.config.model.dtype


def resolve(
    overrides: Sequence[str], config_dir: Path | None, request: ExportRequest
) -> ResolvedExport:
    """Make the plan of a request, or raise UsageError if the target is taken or the format cannot
    describe the plan.
    """
    require_choice("--format", request.format, FORMATS)
    max_shard_bytes = parse_bytes(request.shard_size, "--shard-size ")
    config = configuration.compose(overrides, config_dir, f"export --format {request.format}")
    if request.results is not None and not request.results.is_dir():
        raise UsageError(
            f"expected an existing folder for --results, got {request.results}; use the results_dir"
            " of a run"
        )
    to = _target(request)
    staging.check_target(to, is_folder=request.format == "hf")
    if request.format == "gguf" and find_spec("gguf") is None:
        raise UsageError(
            "--format gguf requires the package gguf, which is not installed; run: pip install gguf"
        )
    omitted = ""
    if request.format == "schedule":  # it contains layers alone
        omitted = config.correction.label
        config = config.replace(correction=configuration.preset("correction", "none"))
    plan = make_plan(config, read_metadata(config.model))
    capabilities.check(needs(config, plan), f"export --format {request.format}")
    skip_adapter = _mergeable_adapter(config, plan, request.format)
    made_by = f"ulskip {__version__}: {shlex.join(['ulskip', 'export', *overrides])}"
    results = request.results or Path(config.results_dir)
    return ResolvedExport(
        config,
        plan,
        request.format,
        to,
        results,
        max_shard_bytes,
        request.check,
        made_by,
        skip_adapter,
        omitted,
    )


def _target(request: ExportRequest) -> Path:
    """Return the folder or file to write; if `--to` lacks the format's suffix, add a default file
    name to it.
    """
    if request.format == "hf":
        return request.to
    name = _FILE_NAMES[request.format]
    suffixes = {Path(name).suffix, ".yml" if request.format == "mergekit" else Path(name).suffix}
    return request.to if request.to.suffix in suffixes else request.to / name


def _mergeable_adapter(config: Config, plan: Plan, as_format: str) -> str | None:
    """Return the folder of the plan's skip adapter, or None; raise UsageError if a checkpoint
    cannot contain its patches.
    """
    folder = config.correction.folder_for(config.model, plan.skipping_sets)
    if folder is None:
        return None
    kind = config.correction.patches(config.model).kind
    if kind not in MERGEABLE:
        raise UsageError(
            f"--format {as_format} supports patches of kind {' and '.join(MERGEABLE)}, got {kind}"
            f" (correction.path={folder}); use patches of kind folded, or --format schedule"
        )
    return folder
