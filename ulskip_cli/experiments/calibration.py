"""Measure on held-out examples the option values that a strategy requires, and store them for later
runs.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ulskip_cli.core.config import baseline_config, changed_choice, preset
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.environment import __version__
from ulskip_cli.core.files import read_object, write_atomic
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.strategy import LAYER, Strategy
from ulskip_cli.engines.base import ExitStats
from ulskip_cli.engines.decoder import DecodeContext, Decoder, generate_all
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.experiments.patches import KEPT_PROMPT_BYTES, LOSS_BATCH, patch_options
from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.workload import Workload
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.block_influence import block_influence
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.inference.patch_fit import PatchFitter
from ulskip_cli.strategies.plan import Plan, make_plan
from ulskip_cli.strategies.schedule_file import ScheduleFile

SEARCH_RIDGE = 0.1  # of the patches in a search


@dataclass
class HeldOutEvaluator:
    """Measures a loaded model on held-out examples, for strategies with calibrated options."""

    config: Config
    loaded: LoadedModel
    workload: Workload
    progress: ProgressCallback
    _losses: dict[bool, ReferenceLoss] = field(default_factory=dict)
    _exiting: Decoder | None = None
    _patching: tuple[PatchFitter, ReferenceLoss] | None = None

    def output_lengths(self) -> list[int]:
        """Return the length in tokens of the full model's answer to each prompt, with the run's
        decoding settings.
        """
        baseline = baseline_config(self.config)
        decoder = Decoder(
            self.loaded.model, make_plan(baseline, self.loaded.metadata), self.loaded.tokenizer
        )
        report = self.progress.phase("calibrate: answers", len(self.workload.prompts))
        lengths = [0] * len(self.workload.prompts)
        size = BatchSize(self.config.batch_size)
        context = DecodeContext(baseline.decoding, self.workload.pad_token_id, self.config.seed)
        for positions, output in generate_all(
            decoder, self.workload.prompts, context, size, lambda done, _: report(done)
        ):
            for position, ids in zip(positions, output.token_ids, strict=True):
                lengths[position] = len(ids)
        return lengths

    def block_influence(self) -> list[float]:
        """Return the block influence of every layer, measured on prompts and references."""
        texts = [
            example.prompt_ids + example.response_ids for example in self.workload.encoded or []
        ]
        report = self.progress.phase("calibrate: influence", len(texts))
        return block_influence(
            self.loaded.model, texts, LOSS_BATCH, report, self.config.strategy.skipped_unit
        )

    @property
    def corrects(self) -> bool:
        """True if `decode_loss` is measured with patches in place."""
        return self.config.correction.is_fitted

    def decode_loss(self, kept_layers: Sequence[int]) -> float:
        """Return the decode loss of the references in nats per token; with prompt_layers=all, later
        calls reuse the prompts.

        With correction=patch it is that of half of the references, with patches fitted on the other
        half.
        """
        if self.corrects:
            return self._patched_decode_loss(kept_layers)
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

    def _patched_decode_loss(self, kept_layers: Sequence[int]) -> float:
        plan = self._plan(kept_layers)
        encoded, pad = self.workload.encoded or [], self.workload.pad_token_id
        if self._patching is None:
            loss = ReferenceLoss(encoded[::2], BatchSize(LOSS_BATCH), pad, KEPT_PROMPT_BYTES)
            fitted_on = encoded[1::2] or encoded
            self._patching = (
                PatchFitter(self.loaded.model, fitted_on, pad, plan.prompt_layers, LOSS_BATCH),
                loss,
            )
        fitter, loss = self._patching
        adapter = fitter.fit(plan.kept_layers, patch_options(self.config, SEARCH_RIDGE))
        return loss.of(Decoder(self.loaded.model, plan, adapter=adapter))

    def _plan(self, kept_layers: Sequence[int]) -> Plan:
        strategy = custom(kept_layers, self.config.strategy.skipped_unit)
        return make_plan(self.config.replace(strategy=strategy), self.loaded.metadata)

    def mean_depth(self, options: Mapping[str, Any]) -> float:
        """Return the mean exit depth over generated answers, with the run's decoding settings and
        batch size.
        """
        config = self.config.replace(
            strategy=changed_choice(self.config.strategy, options, "strategy.")
        )
        plan = make_plan(config, self.loaded.metadata)
        assert plan.exits is not None
        if self._exiting is None:
            self._exiting = Decoder(self.loaded.model, plan, self.loaded.tokenizer)
        decoder, size, total = (
            self._exiting.with_exit_rule(plan.exits),
            BatchSize(config.batch_size),
            ExitStats(),
        )
        context = DecodeContext(config.decoding, self.workload.pad_token_id, config.seed)
        for _, output in generate_all(decoder, self.workload.prompts, context, size):
            total += output.exits or ExitStats()
        return float(plan.num_layers) if total.mean_depth is None else total.mean_depth

    def tell(self, done: int, total: int) -> None:
        """Show one progress bar for the whole search."""
        if done == 1:
            self._report_search = self.progress.phase("calibrate: search", total)
        self._report_search(done)


def custom(kept_layers: Sequence[int], unit: str = LAYER) -> Strategy:
    """Return the strategy of a list of layers that keep a unit."""
    strategy: Strategy = preset("strategy", "custom", {"layers": list(kept_layers), "unit": unit})
    return strategy


def calibrate_strategy(
    config: Config, loaded: LoadedModel, workload: Workload | None, progress: ProgressCallback
) -> tuple[Config, Row | None]:
    """Return the configuration with calibrated options, and the row's calibration entry (None if
    nothing was calibrated).

    The results folder stores the option values; if they are missing, they are measured on
    `workload`, the held-out examples. `workload` is None if there are no held-out examples or no
    tokenizer.
    """
    strategy = config.strategy
    if workload is None or strategy.is_calibrated:
        return config, None
    num_layers, num_kept = (
        loaded.metadata.num_layers,
        make_plan(config, loaded.metadata).target_kept,
    )
    key = _key(config, num_kept, workload)
    path = ResultsFolder.of(config).path / "calibrations" / f"{key}.json"
    stored = _stored(path, strategy)
    if stored is None:
        began = time.monotonic()
        torch.manual_seed(config.seed)
        calibrated = strategy.calibrate(
            num_layers, num_kept, HeldOutEvaluator(config, loaded, workload, progress)
        )
        stored = {
            "id": key,
            "strategy": strategy.name,
            "num_layers": num_layers,
            "num_kept": num_kept if "num_kept" in strategy.calibrated_for else None,
            "examples": len(workload.examples),
            "data": workload.task and workload.task.data,
            "options": calibrated.options,
            "notes": calibrated.notes,
            "seconds": round(time.monotonic() - began, 3),
        }
        write_atomic(path, json.dumps(stored, indent=1) + "\n")
    found_config = config.replace(strategy=changed_choice(strategy, stored["options"], "strategy."))
    plan = make_plan(found_config, loaded.metadata)
    if plan.exits or plan.later_stages:  # no fixed set of layers, which a schedule file requires
        return found_config, stored
    shared = f"{key}-{plan.target_kept}of{num_layers}.schedule.json"
    write_atomic(path.with_name(shared), _schedule(config, plan).to_json())
    return found_config, {**stored, "schedule": shared}


def _stored(path: Path, strategy: Strategy) -> Row | None:
    """Return the calibration in a file, or None if it has values for other options than those
    without a value.
    """
    stored = read_object(path) or {}
    options = stored.get("options")
    if not isinstance(options, dict) or not all(
        key in type(strategy).model_fields and getattr(strategy, key) in (None, value)
        for key, value in options.items()
    ):
        return None
    return stored


def _schedule(config: Config, plan: Plan) -> ScheduleFile:
    return ScheduleFile(
        num_layers=plan.num_layers,
        kept_layers=plan.kept_layers,
        strategy=plan.strategy,
        strategy_options=config.strategy.options(),
        target_ratio=plan.target_speedup,
        ratio_basis=config.ratio_basis,
        prompt_layers=config.prompt_layers,
        model=config.model.path,
        made_by=f"ulskip {__version__}: calibration on held-out examples",
        unit=plan.unit,
    )


def _key(config: Config, num_kept: int, workload: Workload) -> str:
    """Return a hash of everything that a calibration depends on, as 12 hexadecimal digits."""
    decoding = config.decoding.changed(only_results=True)
    depends: dict[str, Any] = {
        "num_kept": num_kept,
        "decoding": decoding,
        "batch_size": config.batch_size,
    }
    parts = [
        config.strategy.changed(),
        config.correction.canonical().changed(),
        config.model.changed(only_results=True),
        fingerprint(config.model),
        {name: depends[name] for name in config.strategy.calibrated_for},
        config.prompt_layers,
        [(example.prompt_ids, example.response_ids) for example in workload.encoded or []],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
