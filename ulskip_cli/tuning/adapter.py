"""Training of a skip adapter for the layers that a tuning chose, with as many steps as fit its
budget.
"""

import math
import shutil
import time
from typing import Any

from ulskip_cli.core.config import compose_training, preset
from ulskip_cli.core.config_schema import AUTO, TrainingConfig
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.validation import check_training
from ulskip_cli.experiments.calibration import OWN_RESPONSES
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.training.run import train
from ulskip_cli.tuning.request import Candidate, TuneRequest, training_examples
from ulskip_cli.tuning.trials import Chosen

MIN_SECONDS = 60.0  # for a training; with fewer seconds, adapter=auto trains nothing
ANSWER_SHARE, MAX_SAMPLES = 0.3, 4  # of these seconds for own answers; of them per prompt
PROBE = {"steps": 4, "examples": 16, "samples": 1}  # the size of a training that is timed


def training_size(
    request: TuneRequest, chosen: Chosen, minutes: float, progress: ProgressCallback
) -> dict[str, int]:
    """Return the steps, examples and own answers per example for which the budget has time."""
    tuned, split, record = request.config, request.split, chosen.record
    if record.later_stages or record.exit_depths:
        raise NotApplicable(f"{chosen.trial.candidate} does not have the same layers in every step")
    config, examples = training_config(request, chosen, PROBE), training_examples(split)
    # The trial's answers tell how long those of the adapter, the winner and the full model take.
    answer = (record.wall_seconds or 0.0) / split.num_choice
    seconds = 60 * (tuned.budget - minutes) - answer * (split.num_choice + 2 * split.num_final)
    if seconds < MIN_SECONDS and tuned.adapter == AUTO:
        raise NotApplicable(
            f"expected at least {MIN_SECONDS:.0f} seconds for the training of an adapter, got "
            f"{max(0.0, seconds):.0f}; raise budget={tuned.budget:g}, or use adapter=always"
        )
    steps, seconds = tuned.adapter_steps, max(seconds, MIN_SECONDS)
    batch_size = config.train.batch_size
    answers = math.ceil(steps * batch_size / 2 if steps else ANSWER_SHARE * seconds / answer)
    count = max(1, min(len(examples), answers))
    samples = max(1, min(MAX_SAMPLES, answers // count))
    if not steps:
        shutil.rmtree(config.output, ignore_errors=True)  # an interrupted one has no times
        began = time.monotonic()
        timed = train(config, progress, examples[: min(PROBE["examples"], count)]).seconds
        took = time.monotonic() - began
        shutil.rmtree(config.output)
        left = seconds - count * samples * answer - 2 * took + timed
        most = math.ceil(config.train.epochs * count * (1 + samples) / batch_size)
        steps = max(1, min(most, int(left / max(timed / PROBE["steps"], 1e-6))))
    return {"steps": steps, "examples": count, "samples": samples}


def train_adapter(
    request: TuneRequest, chosen: Chosen, size: dict[str, int], progress: ProgressCallback
) -> dict[str, Any]:
    """Train a skip adapter, or continue an interrupted training; return its folder and sizes."""
    config = training_config(request, chosen, size)
    record = train(config, progress, training_examples(request.split)[: size["examples"]])
    return {**size, "folder": config.output, "responses": record.examples}


def training_config(request: TuneRequest, chosen: Chosen, size: dict[str, int]) -> TrainingConfig:
    """Return a configuration that trains the patches further; raise UsageError if they cannot be
    trained.
    """
    tuned, trial, results = chosen.candidate.config, chosen.trial, ResultsFolder.of(request.config)
    base = _base(chosen)
    name = "-".join(map(str, [chosen.record.id, *size.values()]))  # another budget has another size
    file, tokens = str(results.path / "calibrations" / OWN_RESPONSES), tuned.decoding.max_new_tokens
    shape = tuned.correction.patches(tuned.model)
    options = base.train.replace(
        start=str(results.path / "calibrations" / trial.patch) if trial.patch else "patch",
        own=base.train.own.replace(samples=size["samples"], file=file, max_new_tokens=tokens),
        max_steps=size["steps"],
        max_length=None,
        save_every=max(1, size["steps"] // 5),
    )
    config = base.replace(
        correction=base.correction.replace(
            kind=shape.kind, rank=shape.rank or base.correction.rank
        ),
        model=tuned.model,
        task=request.split.choice.task,
        train=options,
        output=str(results.path / "tuning" / f"{request.key}-adapter" / name),
        prompt_layers=tuned.prompt_layers,
        seed=tuned.seed,
    )
    check_training(config)
    return config


def adapted(chosen: Chosen, folder: str) -> Candidate:
    """Return the candidate with the trained adapter in a folder."""
    config, label = chosen.candidate.config, f"{chosen.trial.candidate} + trained adapter"
    correction = preset("correction", "adapter", {"path": [folder]})
    return Candidate(label, config.replace(strategy=_base(chosen).strategy, correction=correction))


def _base(chosen: Chosen) -> TrainingConfig:
    layers = str(list(chosen.trial.kept_layers)).replace(" ", "")
    return compose_training(["train=adapter", "strategy=custom", f"strategy.layers={layers}"])
