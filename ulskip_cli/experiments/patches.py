"""Compute the patches of a plan on held-out examples, and store them as a skip adapter for later
runs.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ulskip_cli.core.config_schema import Config, OwnResponses
from ulskip_cli.core.correction import PatchShape
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.corrections.adapter import RECORD
from ulskip_cli.corrections.patch import Patch
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.own_responses import generate_own_responses, greedy_context
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.workload import Workload
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.inference.patch_fit import PatchFitter
from ulskip_cli.inference.ridge_regression import PatchOptions
from ulskip_cli.inference.skip_adapter import SkipAdapter, combined, timing_adapter
from ulskip_cli.strategies.plan import Plan
from ulskip_cli.tasks.encoding import EncodedExample

RIDGES = (0.03, 0.1, 0.3, 1.0)
CHOICE_SHARE = 5  # one example in five chooses the ridge
MAX_SAMPLES = 32  # own answers per prompt
ENOUGH_TOKENS = 4000  # of references, below which correction.responses=auto adds own answers
OWN_RESPONSES = "own_responses.jsonl"  # in calibrations/; patches of all schedules share them
LOSS_BATCH = 16  # examples per batch
KEPT_PROMPT_BYTES = 2**30  # limit of the KV cache of encoded prompts that is kept between calls


def patch_options(config: Config, ridge: float) -> PatchOptions:
    """Return the options of a configuration's patches."""
    shape = _shape(config)
    return PatchOptions(shape.kind, shape.rank, ridge)


def calibrate_patches(
    config: Config,
    loaded: LoadedModel,
    held_out: Workload | None,
    plan: Plan,
    progress: ProgressCallback,
) -> tuple[SkipAdapter | None, Row | None]:
    """Return the patches of a plan with their record, or None without patches; measure them if they
    are not stored.
    """
    if not config.correction.is_fitted or plan.keeps_all:
        return None, None
    shape, kept_sets = _shape(config), plan.skipping_sets
    assert (
        held_out is not None and held_out.encoded
    )  # preflight refuses random weights and tasks without examples
    key = _key(config, kept_sets, held_out)
    folder = ResultsFolder.of(config).path / "calibrations" / key
    if not (folder / RECORD).is_file():
        began = time.monotonic()
        fit = _PatchCalibration(config, loaded, held_out, plan, progress)
        adapter, notes = fit.run(kept_sets, folder.with_name(OWN_RESPONSES))
        record = {
            "base": {"model": config.model.label, "fingerprint": fingerprint(config.model)},
            "kind": shape.kind,
            "rank": shape.rank if shape.kind == "low_rank" else None,
            "strategy": plan.strategy,
            "prompt_layers": plan.prompt_layers,
            **notes,
            "seconds": round(time.monotonic() - began, 1),
        }
        replace(adapter, record=record).save(folder)
    stored = SkipAdapter.load(folder)
    return stored, {"id": key, **stored.record}


def zero_patches(
    config: Config, loaded: LoadedModel, plan: Plan
) -> tuple[SkipAdapter | None, Row | None]:
    """Return patches of zeros with their record, or None without patches. Their values cost no time
    in a benchmark.
    """
    if not config.correction.is_fitted or plan.keeps_all:
        return None, None
    shape = _shape(config)
    rank = shape.rank if shape.kind == "low_rank" else None
    patch = {"kind": shape.kind, "rank": rank, "values": "zero", "bytes": plan.patch_bytes}
    return timing_adapter(loaded.model, [stage.kept_layers for stage in plan.stages], shape), patch


@dataclass
class _PatchCalibration:
    config: Config
    loaded: LoadedModel
    workload: Workload
    plan: Plan
    progress: ProgressCallback

    def run(
        self, kept_sets: Sequence[tuple[int, ...]], responses_file: Path
    ) -> tuple[SkipAdapter, Row]:
        """Choose the ridge by the decode loss of every fifth prompt's responses, then fit on all of
        them.
        """
        encoded, num_prompts = self._responses(responses_file), len(self.workload.prompts)
        chosen_on = [
            example for i, example in enumerate(encoded) if i % num_prompts % CHOICE_SHARE == 0
        ]
        fitted_on = [
            example for i, example in enumerate(encoded) if i % num_prompts % CHOICE_SHARE
        ] or encoded
        losses: dict[float, float] = {}
        fitter = self._fitter(fitted_on)
        held = KEPT_PROMPT_BYTES if self.plan.prompt_layers == "all" else 0
        loss = ReferenceLoss(chosen_on, BatchSize(LOSS_BATCH), self.workload.pad_token_id, held)
        report = self.progress.phase("calibrate: patches", len(RIDGES) + 1)
        for ridge in RIDGES:
            adapter = self._fit(fitter, kept_sets, ridge)
            losses[ridge] = loss.of(Decoder(self.loaded.model, self.plan, adapter=adapter))
            report(len(losses))
        ridge = min(losses, key=losses.__getitem__)
        if fitted_on is not encoded:
            fitter = fitter.joined(self._fitter(chosen_on))
        adapter = self._fit(fitter, kept_sets, ridge)
        size = (
            sum(tensor.numel() for tensor in adapter.tensors.values())
            * self.loaded.model.dtype.itemsize
        )
        return adapter, {
            "ridge": ridge,
            "ridge_losses": {
                f"{strength:g}": round(value, 4) for strength, value in losses.items()
            },
            "examples": len(encoded),
            "tokens": fitter.num_positions,
            "responses": self._wanted,
            "bias": any(
                bool(tensor.any())
                for name, tensor in adapter.tensors.items()
                if name.endswith("bias")
            ),
            "bytes": size if _shape(self.config).kind != "folded" else 0,
        }

    def _fit(
        self, fitter: PatchFitter, kept_sets: Sequence[tuple[int, ...]], ridge: float
    ) -> SkipAdapter:
        return combined([fitter.fit(kept, patch_options(self.config, ridge)) for kept in kept_sets])

    def _fitter(self, examples: Sequence[EncodedExample]) -> PatchFitter:
        return PatchFitter(
            self.loaded.model,
            examples,
            self.workload.pad_token_id,
            self.plan.prompt_layers,
            LOSS_BATCH,
        )

    @property
    def _wanted(self) -> str:
        assert isinstance(self.config.correction, Patch)
        return self.config.correction.responses

    def _responses(self, file: Path) -> list[EncodedExample]:
        """Return references, or own answers, or both; `auto` adds own answers until there are
        ENOUGH_TOKENS tokens.
        """
        encoded, wanted = self.workload.encoded or [], self._wanted
        references = [] if wanted == "own" else list(encoded)
        missing = ENOUGH_TOKENS - _num_tokens(references)
        if wanted == "reference" or (wanted == "auto" and missing <= 0):
            return references
        own_answers = self._own_responses(1, file)
        samples = (
            min(MAX_SAMPLES, math.ceil(missing / max(1, _num_tokens(own_answers))))
            if wanted == "auto"
            else 1
        )
        return [*references, *(self._own_responses(samples, file) if samples > 1 else own_answers)]

    def _own_responses(self, samples: int, file: Path) -> list[EncodedExample]:
        prompts = [example.prompt_ids for example in self.workload.encoded or []]
        context = greedy_context(
            self.workload.pad_token_id, self.config.decoding.max_new_tokens, self.config.seed
        )
        generated = generate_own_responses(
            self.loaded.model, prompts, OwnResponses(samples=samples), context, file, self.progress
        )
        return [
            EncodedExample(prompt, answers[i])
            for i in range(samples)
            for prompt, answers in zip(prompts, generated, strict=True)
        ]


def _shape(config: Config) -> PatchShape:
    return config.correction.patches(config.model)


def _num_tokens(examples: Sequence[EncodedExample]) -> int:
    return sum(len(example.response_ids) for example in examples)


def _key(config: Config, kept_sets: Sequence[tuple[int, ...]], held_out: Workload) -> str:
    """Return a hash of everything on which patches depend, as 12 hexadecimal digits."""
    parts = [
        config.model.changed(only_results=True),
        fingerprint(config.model),
        config.correction.canonical().changed(),
        kept_sets,
        config.prompt_layers,
        [config.decoding.max_new_tokens, config.seed],  # of own answers
        [(example.prompt_ids, example.response_ids) for example in held_out.encoded or []],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
