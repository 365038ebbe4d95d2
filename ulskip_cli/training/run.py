"""Run one training, from its configuration to a plain model folder with its training.json."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import set_seed
from transformers.utils import logging

from ulskip_cli.core import environment
from ulskip_cli.core.config_schema import DEFAULTS, TrainingConfig
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.files import enough_space, user_path, write_atomic
from ulskip_cli.core.model_metadata import fingerprint, read_metadata
from ulskip_cli.core.options import load_json, parse
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.task import Example
from ulskip_cli.inference import loading
from ulskip_cli.training.adapter_loss import AdapterLoss
from ulskip_cli.training.checkpoints import checkpoint_bytes, last_checkpoint
from ulskip_cli.training.data import TrainingTexts, load_training_texts
from ulskip_cli.training.record import RECORD_FILE, TrainedStage, TrainingRecord
from ulskip_cli.training.setup import OWN_RESPONSES, TrainingSetup, prepare_training
from ulskip_cli.training.tracking import tracker_arguments
from ulskip_cli.training.trainer import SkipTrainer


def train(
    config: TrainingConfig, progress: ProgressCallback, examples: Sequence[Example] | None = None
) -> TrainingRecord:
    """Train, resume a killed run, or return a finished run's record; `examples` replace those that
    the task loads.

    Raises UsageError for bad settings, and RunError for NaN.
    """
    output = user_path(config.output, "output")
    config = _limit_to_context(config)
    texts = load_training_texts(config, loading.load_tokenizer(config.model), examples)
    identity = _identity(config, texts)
    finished = _finished_record(output, identity)
    if finished:
        shutil.rmtree(
            output / "checkpoints", ignore_errors=True
        )  # a killed process may have left them
        progress.phase("already finished, nothing to train", 1)
        return finished
    checkpoints, tracker = output / "checkpoints", tracker_arguments(config, identity)
    logging.disable_progress_bar()
    set_seed(config.seed)
    setup = prepare_training(config, texts, progress)
    try:
        trainer = SkipTrainer(setup, checkpoints, progress, tracker)
    except (
        ValueError,
        RuntimeError,
        ImportError,
    ) as error:  # a tracker that is unknown or not installed
        raise UsageError(f"train.training_args: {str(error).splitlines()[0]}") from None
    if trainer.is_world_process_zero():
        write_atomic(checkpoints / "identity", identity)
    began = time.perf_counter()
    with trainer.args.main_process_first(local=False):
        resume_from = last_checkpoint(checkpoints, progress)
    try:  # trackers print, and standard output belongs to `--json`
        with (
            enough_space(checkpoints, checkpoint_bytes(setup.module)),
            contextlib.redirect_stdout(sys.stderr),
        ):
            trainer.train(resume_from_checkpoint=resume_from)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != config.tracker:
            raise
        raise RunError(
            f"tracker={config.tracker} failed ({str(error).strip()}); repair it or set"
            " tracker=none, and run the same command again to continue"
        ) from None
    seconds = round(time.perf_counter() - began, 1)
    record = _make_record(setup, trainer, identity, seconds, resume_from is not None)
    if any(not torch.isfinite(p).all() for p in setup.module.parameters()):
        raise RunError(
            "expected finite weights, got NaN or infinity; lower train.learning_rate and remove"
            f" {output}"
        )
    if trainer.is_world_process_zero():
        with enough_space(
            output, sum(p.numel() * p.element_size() for p in setup.module.parameters())
        ):
            _save(setup, output, record)
    return record


def _limit_to_context(config: TrainingConfig) -> TrainingConfig:
    context = None if config.model.source == "random" else read_metadata(config.model).context
    if context is None or (
        config.train.max_length is not None and config.train.max_length <= context
    ):
        return config
    return config.replace(train=config.train.replace(max_length=context))


def _identity(config: TrainingConfig, texts: TrainingTexts) -> str:
    """Return a hash of everything that decides the weights. Texts and initial weights are hashed
    instead of their paths.
    """
    values = config.changed(only_results=True)
    values = {
        key: value
        for key, value in values.items()
        if key not in ("output", "task", "limit", "offset")
    }
    values["model"].pop("path")
    text = json.dumps([DEFAULTS, values, texts.sha256, fingerprint(config.model)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _finished_record(output: Path, identity: str) -> TrainingRecord | None:
    """Return the record of this training run if the run is complete; otherwise make the output
    folder and return None.
    """
    advice = f"set another output=DIR, or delete {output}"
    if (output / RECORD_FILE).is_file():
        values = load_json(output / RECORD_FILE, "a training record")
        if values.get("identity") != identity:
            raise UsageError(
                f"output={output} contains a training run with other settings or data; {advice}"
            )
        return parse(TrainingRecord, values, file=output / RECORD_FILE)
    begun = output / "checkpoints" / "identity"
    if begun.is_file():
        if begun.read_bytes() != identity.encode():
            raise UsageError(
                f"output={output} contains an unfinished training run with other settings or data;"
                f" {advice}"
            )
    elif output.exists() and not output.is_dir():
        raise UsageError(f"expected output={output} to be a folder, got a file; {advice}")
    elif (
        os.environ.get("RANK", "0") == "0"
        and output.exists()
        and not all(_is_own_beginning(file) for file in output.iterdir())
    ):  # other ranks may start after rank 0 has written its first file
        raise UsageError(
            f"expected output={output} to be empty or to contain a training run, got other files;"
            f" {advice}"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to output={output} ({error.strerror}); set another output=DIR"
        ) from None
    return None


def _is_own_beginning(file: Path) -> bool:
    """Return True for what a training that was killed before it wrote its identity leaves in its
    output folder.
    """
    if file.name == "checkpoints" and file.is_dir():
        return all(entry.name.startswith(".identity.") for entry in file.iterdir())
    return file.name == OWN_RESPONSES


def _make_record(
    setup: TrainingSetup, trainer: SkipTrainer, identity: str, seconds: float, resumed: bool
) -> TrainingRecord:
    config, schedules, state = setup.config, setup.schedules, trainer.state
    return TrainingRecord(
        strategy=config.strategy.name,
        ratios=tuple(schedules),
        kept_layers={f"{ratio:g}": stages[0].kept_layers for ratio, stages in schedules.items()},
        later_stages={
            f"{ratio:g}": tuple(TrainedStage(**asdict(stage)) for stage in stages[1:])
            for ratio, stages in schedules.items()
        },
        kept_counts=tuple(
            sorted(
                {len(stage.kept_layers) for stages in schedules.values() for stage in stages},
                reverse=True,
            )
        ),
        exits=setup.module.exits,
        prompt_layers=config.prompt_layers,
        steps=state.global_step,
        epochs=state.epoch,
        examples=len(setup.data.train),
        left_out=setup.data.train.num_too_long,
        validation_examples=len(setup.texts.validation),
        data_sha256=setup.texts.sha256,
        seed=config.seed,
        train_loss=next(
            (entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None
        ),
        learning_curve=trainer.learning_curve(),
        based_on=setup.source.based_on,
        config=config.resolved(),
        environment={**environment.code(), **environment.machine(str(trainer.args.device))},
        identity=identity,
        seconds=seconds,
        resumed=resumed,
    )


def _save(setup: TrainingSetup, output: Path, record: TrainingRecord) -> None:
    """Save weights and tokenizer, then the record. The record is last, so that a folder with a
    record is complete.
    """
    if isinstance(setup.module, AdapterLoss):
        _save_adapter(setup, setup.module, output, record)
        return
    trained: Any = setup.module.model
    model = trained.merge_and_unload() if hasattr(trained, "merge_and_unload") else trained
    dtype_name = setup.config.model.dtype
    dtype = setup.source.model.dtype if dtype_name == "auto" else getattr(torch, dtype_name)
    model.config.use_cache = True
    model.to(dtype).save_pretrained(output)
    setup.source.tokenizer.save_pretrained(output)
    for file in output.glob(
        "*.safetensors"
    ):  # safetensors makes its files readable only by their owner
        file.chmod((output / "config.json").stat().st_mode)
    _finish(output, record)


def _save_adapter(
    setup: TrainingSetup, module: AdapterLoss, output: Path, record: TrainingRecord
) -> None:
    """Save the adapter's tensors and its record, then the training's record."""
    model, train, patches = setup.config.model, setup.config.train, setup.config.correction
    base = {"model": model.label, "fingerprint": fingerprint(model)}
    kept = {
        f"{ratio:g}": [stage.kept_layers for stage in stages]
        for ratio, stages in setup.schedules.items()
    }
    module.adapter(
        {
            "base": base,
            "kind": patches.kind,
            "rank": patches.rank if patches.kind == "low_rank" else None,
            "strategy": record.strategy,
            "ratios": kept,
            "lora_rank": train.lora.rank,
            "training": {
                "steps": record.steps,
                "examples": record.examples,
                "tokens": sum(setup.data.train.response_lengths()),
                "responses": train.responses,
                "start": train.start,
                "on_policy": train.on_policy,
                "identity": record.identity,
            },
        }
    ).save(output)
    _finish(output, record)


def _finish(output: Path, record: TrainingRecord) -> None:
    write_atomic(
        output / RECORD_FILE, json.dumps(record.plain(), indent=1, ensure_ascii=False) + "\n"
    )
    shutil.rmtree(output / "checkpoints")
