"""Calibration on held-out examples, stored in the results folder for later runs: the option values
of a calibrated strategy, and the patches of a plan as a skip adapter.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from ulskip_cli.core.config import baseline_config, changed_choice
from ulskip_cli.core.config_schema import Config, OwnResponses
from ulskip_cli.core.correction import ADAPTER_FILE, FittedPatches, GapPatch
from ulskip_cli.core.files import JsonObject, read_object, write_atomic
from ulskip_cli.core.fingerprint import digest
from ulskip_cli.core.options import Options
from ulskip_cli.core.progress import ProgressCallback, ReportProgress
from ulskip_cli.core.schedule import Schedule
from ulskip_cli.core.strategy import OptionValues, ScheduleRequest
from ulskip_cli.engines.base import BatchOutput, Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.own_responses import (
    OWN_RESPONSES,
    generate_own_responses,
    greedy_request,
)
from ulskip_cli.engines.scoring import ForcedTexts
from ulskip_cli.experiments.describe import sum_exits
from ulskip_cli.experiments.evaluate import Workload, answer_request
from ulskip_cli.experiments.point import CALIBRATION
from ulskip_cli.experiments.record import CorrectionUsed
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.layerwise import state_similarity
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.inference.patch_fit import PatchFitter
from ulskip_cli.inference.skip_adapter import SkipAdapter, zero_adapter
from ulskip_cli.strategies.plan import Plan, make_plan, schedule_request
from ulskip_cli.tasks.encoding import EncodedExample

RIDGES = (0.03, 0.1, 0.3, 1.0)
CHOICE_SHARE = 5  # one example in five chooses the ridge
MAX_SAMPLES = 32  # own answers per prompt
ENOUGH_TOKENS = 4000  # of references, below which patches are fitted on own answers too
LOSS_BATCH = 8  # examples per batch: they fill a pass over whole texts, and more add padding


@dataclass
class HeldOutEvaluator:
    """Calibrates strategy and patches of a configuration by measurements of the loaded model on
    held-out examples.
    """

    config: Config
    loaded: LoadedModel
    workload: Workload
    progress: ProgressCallback

    @cached_property
    def _full(self) -> Decoder:
        num_layers = self.loaded.metadata.num_layers
        plan = Schedule.from_layers(num_layers, range(num_layers))
        return Decoder(Views.of(self.loaded.model, plan))

    def output_lengths(self) -> list[int]:
        """Return the length in tokens of the full model's answer to each prompt, with the run's
        decoding settings.
        """
        report = self.progress.phase("calibrate: answers", len(self.workload.examples))
        outputs = self._outputs(self._full, baseline_config(self.config), report)
        return [len(ids) for output in outputs for ids in output.token_ids]

    def mean_depth(self, options: OptionValues) -> float:
        """Return the mean exit depth over generated answers, with the run's decoding settings and
        batch size.
        """
        strategy, request = self.config.strategy, self._request
        exits = changed_choice(strategy, options, "strategy.").exit_rule(request)
        views = replace(self._full.views, exits=exits)
        outputs = self._outputs(Decoder(views), self.config)
        return sum_exits(outputs).mean_depth or float(request.num_layers)

    @property
    def _request(self) -> ScheduleRequest:
        return schedule_request(self.config, self.loaded.metadata.num_layers)

    def _outputs(
        self, decoder: Decoder, config: Config, report: ReportProgress = lambda done, note="": None
    ) -> list[BatchOutput]:
        generated = decoder.answer_all(
            self.workload.prompts,
            answer_request(config, self.workload, self.loaded.model),
            BatchSize(config.batch_size),
            lambda done, tokens: report(done, f"{tokens} tokens"),
        )
        return [output for _, output in generated]

    def state_similarity(self) -> list[list[float]]:
        """Return the mean cosines of the full model's states on prompts and references."""
        texts = [example.prompt_ids + example.response_ids for example in self.workload.encoded]
        report = self.progress.phase("calibrate: similarity", len(texts))
        return state_similarity(self.loaded.model, texts, LOSS_BATCH, report)

    @property
    def measures_with_patches(self) -> bool:
        """True if `decode_loss` is measured with patches."""
        return self.config.correction.is_fitted

    @property
    def _patch_kind(self) -> type[GapPatch]:
        return self.config.correction.patch_kind(self.config.model)

    def decode_loss(self, kept_layers: Sequence[int]) -> float:
        """Return the decode loss of the references in nats per token; with prompt_layers=all, later
        calls reuse the prompts.

        With correction=patch, patches are fitted on half of the references, and the loss is
        measured on the other half.
        """
        loaded, prompt_layers = self.loaded, self.config.prompt_layers
        plan = Schedule.from_layers(loaded.metadata.num_layers, kept_layers, prompt_layers)
        adapter = None
        if self.measures_with_patches:
            adapter = self._fitter.fit([kept_layers], self._patch_kind)
        return self._texts.scores(Decoder(Views.of(loaded.model, plan, adapter))).decode_loss

    @cached_property
    def _texts(self) -> ForcedTexts:
        encoded = self.workload.encoded
        return self.forced_texts(encoded[::2] if self.measures_with_patches else encoded)

    @cached_property
    def _fitter(self) -> PatchFitter:
        encoded = self.workload.encoded
        return self.fitter(encoded[1::2] or encoded)  # one example alone has no other half

    def report_progress(self, done: int, total: int) -> None:
        """Show one progress bar for the whole search."""
        self.progress.phase("calibrate: search", total)(done)

    def fitter(self, examples: Sequence[EncodedExample]) -> PatchFitter:
        """Return a fitter of patches on these examples."""
        pad, prompt_layers = self.workload.pad_token_id, self.config.prompt_layers
        return PatchFitter(self.loaded.model, examples, pad, prompt_layers, LOSS_BATCH)

    def forced_texts(self, examples: Sequence[EncodedExample]) -> ForcedTexts:
        """Return the texts of these examples, on which several schedules are scored."""
        prompts, references = zip(*_token_ids(examples), strict=True)
        return ForcedTexts(prompts, references, BatchSize(LOSS_BATCH), self.workload.pad_token_id)

    def calibrate_strategy(self) -> tuple[Plan, JsonObject]:
        """Return the plan with calibrated options of the strategy, and what a row stores of the
        calibration. Option values that the results folder does not have yet are measured and
        stored.
        """
        config, workload, strategy = self.config, self.workload, self.config.strategy
        # A strategy names in `calibrated_for` which of these its calibration depends on.
        depends = {
            "num_kept": self._request.num_kept,
            "decoding": [_without_name(config.decoding), config.answer_tokens],
            "batch_size": config.batch_size,
        }
        name = digest(
            CALIBRATION,
            strategy.non_defaults(),
            strategy.code_fingerprint,
            config.correction.non_defaults(),
            _without_name(self.loaded.folder.model),
            self.loaded.folder.fingerprint,
            {name: depends[name] for name in strategy.calibrated_for},
            config.prompt_layers,
            config.seed,
            _token_ids(workload.encoded),
        )
        path = ResultsFolder.of(config).path / "calibrations" / f"{name}.json"
        stored = read_object(path) or {}
        if not isinstance(stored.get("options"), dict):
            self.progress.phase("calibrate")
            torch.manual_seed(config.seed)
            calibration = strategy.calibrate(self._request, self)
            stored = {"id": name, "examples": len(workload.examples), **asdict(calibration)}
            write_atomic(path, json.dumps(stored, indent=1) + "\n")
        calibrated = changed_choice(strategy, stored["options"], "strategy.")
        return make_plan(config.replace(strategy=calibrated), self.loaded.metadata), stored

    def calibrate_patches(self, plan: Plan) -> tuple[SkipAdapter, CorrectionUsed]:
        """Return the patches of a plan, and what a row stores of them; fit them if no fit is
        stored.
        """
        config, base, patch = self.config, self.loaded.folder, self.config.correction
        assert isinstance(patch, FittedPatches)
        name = digest(
            CALIBRATION,
            _without_name(self.loaded.folder.model),
            base.fingerprint,
            patch.non_defaults(),
            plan.sets_with_gaps,
            config.prompt_layers,
            [config.answer_tokens, config.seed, self._most_samples],  # of own responses
            _token_ids(self.workload.encoded),
        )
        results = ResultsFolder.of(config)
        folder = results.path / "calibrations" / name
        file = folder / ADAPTER_FILE
        # Points that differ in batch size, in other processes too, share the same patches.
        with contextlib.nullcontext() if file.is_file() else results.hold(name):
            if not file.is_file():
                examples = self._responses(folder.with_name(OWN_RESPONSES))
                adapter, notes = self._fit_patches(plan, examples)
                record = {
                    "base": {"model": config.model.label, "fingerprint": base.fingerprint},
                    "task": self.workload.task.name,
                    "strategy": plan.strategy,
                    "prompt_layers": plan.prompt_layers,
                    **notes,
                    "bytes": plan.patch_bytes,
                }
                replace(adapter, record=record).save(folder)
        stored = SkipAdapter.load(folder)
        return stored, CorrectionUsed(name=patch.name, id=name, kind=patch.kind, **stored.record)

    def _fit_patches(
        self, plan: Plan, examples: Sequence[EncodedExample]
    ) -> tuple[SkipAdapter, JsonObject]:
        """Choose the ridge by the decode loss on the responses to every fifth prompt, then fit on
        all responses. Return the patches and the notes that their record stores of the fit.
        """
        kind, num_prompts = self._patch_kind, len(self.workload.prompts)
        choosing: list[EncodedExample] = []
        fitting: list[EncodedExample] = []
        for i, example in enumerate(examples):  # `examples` go through all prompts, then again
            (fitting if i % num_prompts % CHOICE_SHARE else choosing).append(example)
        fitter, texts = self.fitter(fitting or examples), self.forced_texts(choosing)

        losses: dict[float, float] = {}
        report = self.progress.phase("calibrate: patches", len(RIDGES) + 1)
        for ridge in RIDGES:
            adapter = fitter.fit(plan.sets_with_gaps, kind, ridge)
            patched = Decoder(Views.of(self.loaded.model, plan, adapter))
            losses[ridge] = texts.scores(patched).decode_loss
            report(len(losses))
        best = min(losses, key=losses.__getitem__)
        if best in (RIDGES[0], RIDGES[-1]):
            self.progress.note(
                f"patches: the best ridge, {best:g}, is at the edge of those tried,"
                f" {RIDGES[0]:g} to {RIDGES[-1]:g}; one beyond it may be better"
            )
        if fitting:
            fitter = fitter.with_batches(fitter.batches + self.fitter(choosing).batches)
        return fitter.fit(plan.sets_with_gaps, kind, best), {
            "ridge": best,
            "ridge_losses": {f"{ridge:g}": round(value, 4) for ridge, value in losses.items()},
            "examples": len(examples),
            "tokens": fitter.num_positions,
        }

    def _responses(self, file: Path) -> list[EncodedExample]:
        """Return the references, and if they have fewer than `ENOUGH_TOKENS` tokens also the full
        model's own answers, as many as are missing, but not more than `_most_samples` to each
        prompt. `file` stores the own answers.
        """
        config, workload, model = self.config, self.workload, self.loaded.model
        length, pad = config.answer_tokens, workload.pad_token_id
        request = greedy_request(model, pad, length, config.seed)

        def own_answers(samples: int) -> list[EncodedExample]:
            options, prompts = OwnResponses(samples=samples), workload.prompts
            generated = generate_own_responses(
                model, prompts, options, request, file, self.progress
            )
            return [
                EncodedExample(prompt, answers[i])
                for i in range(samples)
                for prompt, answers in zip(prompts, generated, strict=True)
            ]

        references = workload.encoded if workload.examples[0].reference else []
        missing = ENOUGH_TOKENS - _num_tokens(references)
        if missing <= 0:
            return references
        # One answer to each prompt tells how long they are; `file` keeps it for the second call.
        samples = math.ceil(missing / max(1, _num_tokens(own_answers(1))))
        return [*references, *own_answers(min(self._most_samples, samples))]

    @property
    def _most_samples(self) -> int:
        """The largest number of own answers to a prompt, half of the examples that are asked for: a
        calibration that is meant to be quick stays so.
        """
        return min(MAX_SAMPLES, max(1, self.config.calibration.examples // 2))


def zero_patches(
    config: Config, loaded: LoadedModel, plan: Plan
) -> tuple[SkipAdapter, CorrectionUsed]:
    """Return patches that change nothing, and the values that a row stores about them. Benchmarks
    use them, because times do not depend on values.
    """
    kind = config.correction.patch_kind(config.model)
    used: JsonObject = {"kind": kind.name, "values": "zero", "bytes": plan.patch_bytes}
    adapter = zero_adapter(loaded.model, plan.sets_with_gaps, kind)
    return adapter, CorrectionUsed(name=config.correction.name, **used)


def _without_name(options: Options) -> JsonObject:
    return options.non_defaults(lambda key: key != "name")


def _num_tokens(examples: Sequence[EncodedExample]) -> int:
    return sum(len(example.response_ids) for example in examples)


def _token_ids(examples: Sequence[EncodedExample]) -> list[tuple[list[int], list[int]]]:
    return [(example.prompt_ids, example.response_ids) for example in examples]
