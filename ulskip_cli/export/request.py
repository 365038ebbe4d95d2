"""The request of an export and its checks, made before any weight is read. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ulskip_cli.core import config as configuration
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.environment import __version__
from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.model_metadata import read_metadata
from ulskip_cli.export import staging
from ulskip_cli.strategies import NeedsCalibration
from ulskip_cli.strategies.memory import parse_bytes
from ulskip_cli.strategies.plan import Plan, make_plan

FORMATS = ("hf", "gguf", "mergekit", "schedule")
_FILE_NAMES = {"gguf": "model.gguf", "mergekit": "mergekit.yaml", "schedule": "schedule.json"}


@dataclass(frozen=True)
class ExportRequest:
    """The options of `ulskip export`."""

    to: Path  # a folder; for a format of one file, the file or a folder for it
    format: str = "hf"  # one of FORMATS
    results: Path | None = None  # the folder of measured rows for the model card; None: `results_dir`
    shard_size: str = "5GB"  # of the largest weights file
    check: bool | None = None  # compare the export with the view; None: if both fit into memory


@dataclass(frozen=True)
class ResolvedExport:
    """A checked request: the configuration, its plan and where the result goes."""

    config: Config
    plan: Plan
    format: str
    to: Path  # the folder, or for a format of one file the file
    results: Path
    max_shard_bytes: int
    check: bool | None
    made_by: str  # program, version and command

    @property
    def model_name(self) -> str:
        """Hub id or folder of the model, or the name of a bundled one."""
        model = self.config.model
        return model.path if model.source in ("hf", "random") else model.name

    @property
    def is_pair(self) -> bool:
        """True if prompts run through more layers than decode steps do."""
        return self.plan.prompt_layers == "all" and not self.plan.keeps_all

    @property
    def dtype(self) -> str | None:
        """The dtype that was asked for; None: the source's."""
        return None if self.config.model.dtype == "auto" else self.config.model.dtype


def resolve(overrides: Sequence[str], config_dir: Path | None, request: ExportRequest) -> ResolvedExport:
    """Check that the target is free and that the format can express the schedule and the model, and make the plan."""
    require_choice("--format", request.format, FORMATS)
    max_shard_bytes = parse_bytes(request.shard_size, "--shard-size ")
    config = configuration.compose(overrides, config_dir)
    if request.results is not None and not request.results.is_dir():
        raise UsageError(f"--results: no folder at {request.results}")
    to = _target(request)
    staging.check_target(to, is_folder=request.format == "hf")
    if request.format == "gguf" and find_spec("gguf") is None:
        raise UsageError("--format gguf needs the package gguf; get it with: pip install gguf")
    plan = exportable_plan(config)
    if request.format != "schedule" and plan.later_stages:
        raise UsageError(
            f"strategy={plan.strategy} runs fewer layers at later steps, which no single checkpoint can express; "
            "--format schedule writes it, and strategy=custom exports the layers of one stage"
        )
    if request.format in ("hf", "gguf"):
        _require_plain_weights(config)
    made_by = " ".join([f"ulskip {__version__}:", "ulskip export", *overrides])
    results = request.results or Path(config.results_dir)
    return ResolvedExport(config, plan, request.format, to, results, max_shard_bytes, request.check, made_by)


def exportable_plan(config: Config) -> Plan:
    """Make the plan of a configuration; refuse one whose layers are measured by a run or chosen at every token."""
    name = config.strategy["name"]
    if config.ratio_basis == "latency":
        raise UsageError(
            "ratio_basis=latency is decided by a run's clock; export the kept_layers of its row with strategy=custom "
            "strategy.layers=[...], or take ratio_basis=cost"
        )
    plan = make_plan(config, read_metadata(config.model))
    if plan.exits:
        raise UsageError(
            f"strategy={name} decides at every token which layers run, which no export can express; export strategy=full, "
            "or strategy=top_skip for one depth"
        )
    strategy = configuration.instantiate(config.strategy, "strategy")
    if isinstance(strategy, NeedsCalibration) and not strategy.is_calibrated:
        raise UsageError(
            f"strategy={name} is decided by a run, on held-out examples; export the kept_layers of its row with "
            "strategy=custom strategy.layers=[...], or give calibration.options of its row"
        )
    return plan


def _target(request: ExportRequest) -> Path:
    """Return the folder to write, or the file, which gets a default name if `--to` has another suffix."""
    if request.format == "hf":
        return request.to
    name = _FILE_NAMES[request.format]
    suffixes = {Path(name).suffix, ".yml" if request.format == "mergekit" else Path(name).suffix}
    return request.to if request.to.suffix in suffixes else request.to / name


def _require_plain_weights(config: Config) -> None:
    if config.model.source == "random":
        raise UsageError("model=random has no weights worth an export; give a pretrained model")
    if config.model.quantization:
        raise UsageError("export writes plain weights; leave model.quantization out, and quantize the exported model")
    if config.decoding.draft_tokens:
        raise UsageError("a drafting model is the view and the full model together; export with decoding.draft_tokens=0")
