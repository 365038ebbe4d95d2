"""A trained skip adapter for the layers that a tuning chose: its configuration, its number of steps, and its training."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ulskip_cli.core.config import compose_training
from ulskip_cli.core.config_schema import AUTO, TrainingConfig
from ulskip_cli.core.errors import NotApplicable, RunError, StorageError, UsageError
from ulskip_cli.core.progress import ProgressCallback, ReportProgress
from ulskip_cli.core.validation import check_training
from ulskip_cli.experiments.patches import OWN_RESPONSES
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.strategies.patching import patch_of
from ulskip_cli.tasks import Example
from ulskip_cli.training.run import train
from ulskip_cli.tuning.request import Candidate, TuneRequest, training_examples
from ulskip_cli.tuning.trials import Chosen

MIN_SECONDS = 60.0  # for a training; with fewer seconds, adapter=auto trains nothing
ANSWER_SHARE = 0.3  # of these seconds, for the model's own answers
MAX_SAMPLES = 4  # own answers per prompt
PROBE_STEPS, PROBE_EXAMPLES = 4, 16
CHECKPOINTS = 5  # in a training


@dataclass(frozen=True)
class TrainingSize:
    """The size of a training: optimizer steps, examples, and the model's own answers to each of them."""

    steps: int
    examples: int
    samples: int


@dataclass
class AdapterTraining:
    """Trains a skip adapter for the chosen layers, on examples that neither choose nor are reported."""

    request: TuneRequest
    chosen: Chosen
    progress: ProgressCallback

    def __post_init__(self) -> None:
        results = ResultsFolder.of(self.request.config)
        self._calibrations = results.path / "calibrations"
        self._folder = results.path / "tuning" / f"{self.request.key}-adapter"

    def decide(self, minutes: float) -> dict[str, Any]:
        """Return the `TrainingSize` that fits into the budget after some minutes; see `_unless_refused`."""
        return _unless_refused(lambda: asdict(self._size(minutes)))

    def _size(self, minutes: float) -> TrainingSize:
        tuned, split, row = self.request.config, self.request.split, self.chosen.row
        if row.get("later_stages") or row.get("exit_depths"):
            raise NotApplicable(f"expected the same layers in every step, which {self.chosen.trial.candidate} does not have")
        config, examples = self.config(TrainingSize(1, 1, 1)), training_examples(split)
        # The answers of the trial tell how long those of the adapter, of the winner and of the full model will take.
        answer = float(row["wall_seconds"]) / split.num_choice
        seconds = 60 * (tuned.budget - minutes) - answer * (split.num_choice + 2 * split.num_final)
        if seconds < MIN_SECONDS and tuned.adapter == AUTO:
            raise NotApplicable(
                f"expected {MIN_SECONDS:.0f} seconds of the budget for a training, got {max(0.0, seconds):.0f}; raise "
                f"budget={tuned.budget:g}, or use adapter=always"
            )
        if tuned.adapter_steps:
            num_responses = tuned.adapter_steps * config.train.batch_size
            return _divide(tuned.adapter_steps, len(examples), math.ceil(num_responses / 2))
        seconds = max(seconds, MIN_SECONDS)
        size = _divide(1, len(examples), int(ANSWER_SHARE * seconds / answer))
        return self._timed(size, examples, seconds - size.examples * size.samples * answer)

    def _timed(self, size: TrainingSize, examples: Sequence[Example], seconds: float) -> TrainingSize:
        """Return a size with the number of steps that fits into the seconds, by the times of a few steps."""
        few = TrainingSize(PROBE_STEPS, min(PROBE_EXAMPLES, size.examples), 1)
        config, clock = self.config(few, "probe"), _StepClock(self.progress)
        shutil.rmtree(config.output, ignore_errors=True)  # of an interrupted process: its times would be incomplete
        began = time.monotonic()
        try:
            train(config, clock, examples[: few.examples])
        finally:
            shutil.rmtree(config.output, ignore_errors=True)
        took = time.monotonic() - began
        overhead = took - clock.seconds_per_step * PROBE_STEPS
        responses = size.examples * (1 + size.samples)
        most = math.ceil(config.train.epochs * responses / config.train.batch_size)
        return replace(size, steps=num_steps(seconds - took - overhead, clock.seconds_per_step, most))

    def run(self, size: TrainingSize) -> dict[str, Any]:
        """Train, or continue an interrupted training, and return what was trained; see `_unless_refused`."""
        return _unless_refused(lambda: self._train(size))

    def _train(self, size: TrainingSize) -> dict[str, Any]:
        config = self.config(size, self._name(size))
        record = train(config, self.progress, training_examples(self.request.split)[: size.examples])
        return {"folder": config.output, "steps": record.steps, "examples": size.examples, "responses": record.examples}

    def adapted(self, folder: str) -> Candidate:
        """Return the candidate with the trained adapter in a folder."""
        config = self.chosen.candidate.config
        strategy = self.config(TrainingSize(1, 1, 1)).strategy
        model = replace(config.model, skip_adapter=[folder])
        return Candidate(f"{self.chosen.trial.candidate} + trained adapter", replace(config, strategy=strategy, model=model))

    def config(self, size: TrainingSize, name: str = "") -> TrainingConfig:
        """Return the configuration of a training; raise UsageError if this model or candidate cannot have an adapter."""
        tuned, layers = self.chosen.candidate.config, str(list(self.chosen.trial.kept_layers)).replace(" ", "")
        base = compose_training(["train=adapter", "strategy=custom", f"strategy.layers={layers}"])
        kind, file = patch_of(tuned.strategy), self._calibrations / OWN_RESPONSES
        own = replace(base.train.own, samples=size.samples, file=str(file), max_new_tokens=tuned.decoding.max_new_tokens)
        options = replace(
            base.train,
            patch=kind,
            patch_rank=tuned.strategy.get("patch_rank", base.train.patch_rank),
            start="patch" if self.chosen.trial.patch is None else str(self._calibrations / self.chosen.trial.patch),
            own=own,
            max_steps=size.steps,
            max_length=None,
            save_every=max(1, size.steps // CHECKPOINTS),
        )
        config = TrainingConfig(
            model=tuned.model,
            task=self.request.split.choice.task,
            strategy=base.strategy,
            train=options,
            output=str(self._folder / name),
            prompt_layers=tuned.prompt_layers,
            seed=tuned.seed,
        )
        check_training(config)
        return config

    def _name(self, size: TrainingSize) -> str:
        """Return a name for a training, because a raised budget may choose other layers or another number of steps."""
        parts = [self.chosen.trial.kept_layers, self.chosen.trial.patch, vars(size)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@dataclass
class _StepClock:
    """Passes progress on, and notes when the optimizer steps of a training end."""

    inner: ProgressCallback
    times: list[float] = field(default_factory=list)

    def phase(self, label: str, total: int) -> ReportProgress:
        """Forget the times of the phase before."""
        self.times.clear()
        report = self.inner.phase(label, total)

        def step_done(done: int, note: str = "") -> None:
            self.times.append(time.monotonic())
            report(done, note)

        return step_done

    @property
    def seconds_per_step(self) -> float:
        """The mean seconds of a step, with the first encoding of its prompts."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)


def _unless_refused(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the value of a step, or `refused` with the reason why this model or candidate cannot have an adapter."""
    try:
        return run()
    except StorageError:
        raise
    except (UsageError, RunError) as error:
        return {"refused": str(error)}


def _divide(steps: int, available: int, num_answers: int) -> TrainingSize:
    """Divide a number of own answers between examples and samples: more examples first.

    >>> _divide(9, 64, 20), _divide(9, 64, 200)
    (TrainingSize(steps=9, examples=20, samples=1), TrainingSize(steps=9, examples=64, samples=3))
    """
    examples = max(1, min(available, num_answers))
    return TrainingSize(steps, examples, max(1, min(MAX_SAMPLES, num_answers // examples)))


def num_steps(seconds: float, seconds_per_step: float, most: int) -> int:
    """Return the number of steps that fits into some seconds, at least 1 and at most `most`.

    >>> num_steps(60, 2, 100), num_steps(60, 2, 20), num_steps(-5, 2, 20)
    (30, 20, 1)
    """
    return max(1, min(most, int(seconds / max(seconds_per_step, 1e-6))))
