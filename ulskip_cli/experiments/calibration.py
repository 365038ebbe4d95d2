"""Measure on held-out examples the option values that a strategy requires, and store them for later runs."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ulskip_cli.core.config import baseline_config, drop_unused, instantiate, resolved_config
from ulskip_cli.core.config_schema import LAYER, Config
from ulskip_cli.core.environment import __version__
from ulskip_cli.core.files import read_object, write_atomic
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.patches import KEPT_PROMPT_BYTES, LOSS_BATCH, patch_options
from ulskip_cli.experiments.record import ROW_VERSION, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.workload import Workload
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.block_influence import block_influence
from ulskip_cli.inference.decoder import DecodeContext, Decoder, generate_all
from ulskip_cli.inference.engines.base import ExitStats
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.inference.patch_fit import PatchFitter
from ulskip_cli.inference.scoring import ReferenceLoss
from ulskip_cli.strategies import NeedsCalibration
from ulskip_cli.strategies.patching import unit_of
from ulskip_cli.strategies.plan import Plan, make_plan
from ulskip_cli.strategies.schedule_file import ScheduleFile

SEARCH_RIDGE = 0.1  # of the patches in a search


@dataclass
class HeldOutEvaluator:
    """Measures a loaded model on held-out examples, for `NeedsCalibration` strategies."""

    config: Config
    loaded: LoadedModel
    workload: Workload
    progress: ProgressCallback
    _losses: dict[bool, ReferenceLoss] = field(default_factory=dict)
    _exiting: Decoder | None = None
    _patching: tuple[PatchFitter, ReferenceLoss] | None = None

    def output_lengths(self) -> list[int]:
        """Return the length in tokens of the full model's answer to each prompt, with the run's decoding settings."""
        baseline = baseline_config(self.config)
        decoder = Decoder(self.loaded.model, make_plan(baseline, self.loaded.metadata), self.loaded.tokenizer)
        report = self.progress.phase("calibrate: answers", len(self.workload.prompts))
        lengths = [0] * len(self.workload.prompts)
        size = BatchSize(self.config.batch_size)
        context = DecodeContext(baseline.decoding, self.workload.pad_token_id, self.config.seed)
        for positions, output in generate_all(decoder, self.workload.prompts, context, size, lambda done, _: report(done)):
            for position, ids in zip(positions, output.token_ids, strict=True):
                lengths[position] = len(ids)
        return lengths

    def block_influence(self) -> list[float]:
        """Return the block influence of every layer, measured on prompts and references."""
        texts = [one.prompt_ids + one.response_ids for one in self.workload.encoded or []]
        report = self.progress.phase("calibrate: influence", len(texts))
        return block_influence(self.loaded.model, texts, LOSS_BATCH, report, unit_of(self.config.strategy))

    def decode_loss(self, kept_layers: Sequence[int]) -> float:
        """Return the decode loss of the references in nats per token; with prompt_layers=all, later calls reuse the prompts."""
        plan = self._plan(kept_layers)
        decoder = Decoder(self.loaded.model, plan)
        shared = plan.prompt_layers == "all"
        if not shared or shared not in self._losses:
            self._losses[shared] = ReferenceLoss(
                self.workload.encoded or [],
                BatchSize(LOSS_BATCH),
                self.workload.pad_token_id,
                KEPT_PROMPT_BYTES if shared else 0,
            )
        return self._losses[shared].of(decoder)

    def patched_decode_loss(self, kept_layers: Sequence[int]) -> float:
        """Return the decode loss of half of the references in nats per token, with patches fitted on the other half."""
        plan = self._plan(kept_layers)
        encoded, pad = self.workload.encoded or [], self.workload.pad_token_id
        if self._patching is None:
            loss = ReferenceLoss(encoded[::2], BatchSize(LOSS_BATCH), pad, KEPT_PROMPT_BYTES)
            fitted_on = encoded[1::2] or encoded
            self._patching = PatchFitter(self.loaded.model, fitted_on, pad, plan.prompt_layers, LOSS_BATCH), loss
        fitter, loss = self._patching
        adapter = fitter.fit(plan.kept_layers, patch_options(self.config, SEARCH_RIDGE))
        return loss.of(Decoder(self.loaded.model, plan, adapter=adapter))

    def _plan(self, kept_layers: Sequence[int]) -> Plan:
        strategy = custom(kept_layers, unit_of(self.config.strategy))
        return make_plan(replace(self.config, strategy=strategy), self.loaded.metadata)

    def mean_depth(self, options: Mapping[str, Any]) -> float:
        """Return the mean exit depth over generated answers, with the run's decoding settings and batch size."""
        config = replace(self.config, strategy={**self.config.strategy, **options})
        plan = make_plan(config, self.loaded.metadata)
        assert plan.exits is not None
        if self._exiting is None:
            self._exiting = Decoder(self.loaded.model, plan, self.loaded.tokenizer)
        decoder, size, total = self._exiting.with_exit_rule(plan.exits), BatchSize(config.batch_size), ExitStats()
        context = DecodeContext(config.decoding, self.workload.pad_token_id, config.seed)
        for _, output in generate_all(decoder, self.workload.prompts, context, size):
            total += output.exits or ExitStats()
        return float(plan.num_layers) if total.mean_depth is None else total.mean_depth

    def tell(self, done: int, total: int) -> None:
        """Show one progress bar for the whole search."""
        if done == 1:
            self._report_search = self.progress.phase("calibrate: search", total)
        self._report_search(done)


def custom(kept_layers: Sequence[int], unit: str = LAYER) -> dict[str, Any]:
    """Return the strategy config of a list of layers that keep a unit."""
    target = "ulskip_cli.strategies.custom.Custom"
    return {"_target_": target, "name": "custom", "layers": list(kept_layers), "unit": unit}


def calibrate_strategy(
    config: Config, loaded: LoadedModel, workload: Workload | None, progress: ProgressCallback
) -> tuple[Config, Row | None]:
    """Return the configuration with calibrated options, and the row's calibration entry (None if nothing was calibrated).

    The results folder stores the option values; if they are missing, they are measured on `workload`, the held-out examples.
    `workload` is None if there are no held-out examples or no tokenizer.
    """
    strategy = instantiate(config.strategy, "strategy")
    if workload is None or not isinstance(strategy, NeedsCalibration) or strategy.is_calibrated:
        return config, None
    num_layers, num_kept = loaded.metadata.num_layers, make_plan(config, loaded.metadata).target_kept
    key = _key(config, strategy, num_kept, workload)
    path = ResultsFolder.of(config).path / "calibrations" / f"{key}.json"
    stored = _stored(path, config.strategy)
    if stored is None:
        began = time.monotonic()
        torch.manual_seed(config.seed)
        found = strategy.calibrate(num_layers, num_kept, HeldOutEvaluator(config, loaded, workload, progress))
        stored = {
            "id": key,
            "strategy": config.strategy["name"],
            "num_layers": num_layers,
            "num_kept": num_kept if "num_kept" in strategy.calibrated_for else None,
            "examples": len(workload.examples),
            "data": workload.task and workload.task.data,
            "options": found.options,
            "notes": found.notes,
            "seconds": round(time.monotonic() - began, 3),
        }
        write_atomic(path, json.dumps(stored, indent=1) + "\n")
    found_config = replace(config, strategy={**config.strategy, **stored["options"]})
    plan = make_plan(found_config, loaded.metadata)
    if plan.exits or plan.later_stages:  # no fixed set of layers, which a schedule file requires
        return found_config, stored
    shared = f"{key}-{plan.target_kept}of{num_layers}.schedule.json"
    write_atomic(path.with_name(shared), _schedule(config, plan).to_json())
    return found_config, {**stored, "schedule": shared}


def _stored(path: Path, strategy: Mapping[str, Any]) -> Row | None:
    """Return the calibration in a file, or None if it has values for other options than those without a value."""
    found = read_object(path) or {}
    options = found.get("options")
    if not isinstance(options, dict) or not all(
        key in strategy and (not strategy[key] or strategy[key] == value) for key, value in options.items()
    ):
        return None
    return found


def _schedule(config: Config, plan: Plan) -> ScheduleFile:
    return ScheduleFile(
        num_layers=plan.num_layers,
        kept_layers=plan.kept_layers,
        strategy=plan.strategy,
        strategy_options=plan.options,
        target_ratio=plan.target_speedup,
        ratio_basis=config.ratio_basis,
        prompt_layers=plan.prompt_layers,
        model=config.model.path,
        made_by=f"ulskip {__version__}: calibration on held-out examples",
        unit=plan.unit,
    )


def _key(config: Config, strategy: NeedsCalibration, num_kept: int, workload: Workload) -> str:
    """Return a hash of everything that a calibration depends on, as 12 hexadecimal digits."""
    plain = resolved_config(config)
    patched = asdict(patch_options(config, SEARCH_RIDGE)) if getattr(strategy, "measures_patches", False) else None
    plain["strategy"]["patch"] = "none"  # it changes only a search with patches
    drop_unused(plain)
    depends: dict[str, Any] = {"num_kept": num_kept, "decoding": plain["decoding"], "batch_size": config.batch_size}
    parts = [
        ROW_VERSION,
        {key: value for key, value in plain["strategy"].items() if key != "description"},
        {key: value for key, value in plain["model"].items() if key != "description"},
        fingerprint(config.model),
        {name: depends[name] for name in strategy.calibrated_for},
        config.prompt_layers,
        [(one.prompt_ids, one.response_ids) for one in workload.encoded or []],
        *([patched] if patched else []),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
