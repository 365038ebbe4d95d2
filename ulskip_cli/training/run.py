"""One training: config -> model + texts -> Trainer -> a plain model folder with its training.json."""

import copy
import hashlib
import json
import os
import shutil
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import set_seed
from transformers.utils import logging

from ulskip_cli.core import environment
from ulskip_cli.core.config import resolved_config
from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.model_metadata import fingerprint, read_metadata
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.inference import loading, shallow_view
from ulskip_cli.strategies.schedule import Stage
from ulskip_cli.strategies.training_schedules import schedules, trained_exits
from ulskip_cli.training.data import TokenPairs, TrainingTexts, train_tokenizer, training_texts
from ulskip_cli.training.trainer import SkipTrainer, last_checkpoint
from ulskip_cli.training.two_pass import LossWeights, TwoPass, add_dropout

RECORD = "training.json"
_NOT_IDENTITY = ("evaluate_every", "save_every", "log_every", "validation", "held_out")  # what changes no weight by itself
_LATER_KEYS = ("device_map", "quantization", "adapter", "chat_options")  # unset, they leave older trainings what they were


@dataclass(frozen=True)
class Subject:
    """What is trained."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    based_on: dict[str, Any] | None  # what is known of the training of the weights it starts from


def train(config: TrainingConfig, progress: ProgressCallback) -> dict[str, Any]:
    """Train, or carry on where a killed training stopped, or find that it is done.

    Returns:
        The record that lies beside the weights as training.json.

    Raises:
        UsageError: something in the configuration cannot be, or the output folder holds another training.
    """
    output = Path(config.output)
    context = None if config.model.source == "random" else read_metadata(config.model).context
    if context is not None and (config.train.max_length is None or config.train.max_length > context):
        config = replace(config, train=replace(config.train, max_length=context))
    texts = training_texts(config, loading.load_tokenizer(config.model))
    identity = _identity(config, texts)
    finished = _finished(output, identity)
    if finished:
        progress.phase("finished before, nothing to do", 1)
        return finished
    checkpoints = output / "checkpoints"
    logging.disable_progress_bar()
    set_seed(config.seed)
    progress.phase(f"load {config.model.name}", 1)
    subject = _subject(config, texts)
    depth = shallow_view.num_layers(subject.model)
    tokenized = progress.phase("tokenize", len(texts.train))
    pairs = TokenPairs(subject.tokenizer, texts.train, texts.phrasing, config.train.max_length, tokenized)
    ratios = schedules(config, depth, [len(response) for _, response in pairs.pairs])
    validation = None
    if texts.validation:
        validation = TokenPairs(subject.tokenizer, texts.validation, texts.phrasing, config.train.max_length)
    exits = trained_exits(config, depth)
    module = _module(config, subject.model, exits)
    device = "cpu" if loading.pick_device(config.model.device).type == "cpu" else "auto"
    try:
        trainer = SkipTrainer(module, ratios, config, subject.tokenizer, pairs, validation, checkpoints, progress, device)
    except (ValueError, RuntimeError, ImportError) as error:  # a tracker that is unknown or not installed
        raise UsageError(f"train.training_args: {str(error).splitlines()[0]}") from None
    if trainer.is_world_process_zero():
        write_atomic(output / "checkpoints" / "identity", identity)
    began = time.perf_counter()
    resume_from = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if validation and trainer.state.log_history and _step_of_last_evaluation(trainer) != trainer.state.global_step:
        trainer.evaluate()
    record = {
        **_record(config, subject, texts, pairs, ratios, trainer),
        "identity": identity,
        "seconds": round(time.perf_counter() - began, 1),
        "resumed": resume_from is not None,
    }
    if any(not torch.isfinite(p).all() for p in module.parameters()):
        raise RunError(f"the weights are no longer finite; lower train.learning_rate and remove {output}")
    if trainer.is_world_process_zero():
        _save(module, subject, config, output, record)
    return record


def _identity(config: TrainingConfig, texts: TrainingTexts) -> str:
    """12 hex digits of everything that decides the trained weights."""
    canonical = resolved_config(config)
    for key in ("output", "task", "limit"):  # the texts themselves are hashed, wherever they lie
        canonical.pop(key)
    canonical["model"].pop("path")  # and so are the weights
    for key in _LATER_KEYS:
        if canonical["model"][key] is None:
            canonical["model"].pop(key)
    for key in _NOT_IDENTITY:
        canonical["train"].pop(key)
    for group in ("model", "strategy", "train"):
        canonical[group].pop("description", None)
    text = json.dumps([canonical, texts.sha256, fingerprint(config.model)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _finished(output: Path, identity: str) -> dict[str, Any] | None:
    """The record of this very training if it is complete; refuses a folder that holds anything else.

    Raises:
        UsageError: the folder belongs to another training or another model.
    """
    advice = "choose another output= or remove it"
    if (output / RECORD).is_file():
        record: dict[str, Any] = json.loads((output / RECORD).read_text("utf-8"))
        if record.get("identity") != identity:
            raise UsageError(f"{output} holds a training with other settings or data; {advice}")
        return record
    begun = output / "checkpoints" / "identity"
    if begun.is_file():
        if begun.read_text("utf-8") != identity:
            raise UsageError(f"{output} holds an unfinished training with other settings or data; {advice}")
    elif output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; {advice}")
    elif os.environ.get("RANK", "0") == "0" and output.exists() and any(output.iterdir()):  # others may come later
        raise UsageError(f"{output} is not empty and holds no training of ours; {advice}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {output} ({error.strerror})") from None
    return None


def _subject(config: TrainingConfig, texts: TrainingTexts) -> Subject:
    """The model and its tokenizer; weights that are trained are float32, so that small updates are not rounded away."""
    if config.model.source == "random":
        length = config.train.max_length or 2048
        tokenizer = train_tokenizer(texts.train, config.train.vocab_size, length)
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        model = loading.random_model(replace(config.model, dtype="float32"), config.seed, vocab_size=len(tokenizer), **ids)
        subject = Subject(model, tokenizer, None)
    else:
        dtype = config.model.dtype if config.train.method == "lora" else "float32"  # peft's adapters are float32 anyway
        loaded = loading.load(replace(config.model, dtype=dtype, device="cpu"))
        assert loaded.tokenizer is not None
        subject = Subject(loaded.model, loaded.tokenizer, loading.training_record(config.model))
    if config.train.attention:
        try:
            subject.model.set_attn_implementation(config.train.attention)
        except (ValueError, ImportError) as error:
            raise UsageError(f"train.attention={config.train.attention}: {str(error).splitlines()[0]}") from None
    return subject


def _module(config: TrainingConfig, model: PreTrainedModel, exits: tuple[int, ...]) -> TwoPass:
    """The model with its loss, adapters and frozen parts."""
    train = config.train
    initial = train.teacher == "initial" and train.distill_weight > 0
    teacher = None
    if initial:  # under adapters the initial model is there already: it is the base without them
        teacher = model if train.method == "lora" else copy.deepcopy(model).eval().requires_grad_(False)
    if train.dropout:
        add_dropout(model, train.dropout)
    trained: Any = model
    if train.method == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=train.lora.rank,
            lora_alpha=train.lora.alpha,
            lora_dropout=train.lora.dropout,
            target_modules=train.lora.targets if train.lora.targets == "all-linear" else train.lora.targets.split(","),
            task_type="CAUSAL_LM",
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft still reads an old name of transformers
                trained = get_peft_model(model, lora)
        except ValueError as error:
            raise UsageError(f"train.lora.targets={train.lora.targets}: {str(error).splitlines()[0][:200]}") from None
    elif train.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    weights = LossWeights(train.ce_weight, train.full_weight, train.distill_weight, train.label_smoothing)
    return TwoPass(trained, config.prompt_layers, weights, teacher, exits)


def _record(
    config: TrainingConfig,
    subject: Subject,
    texts: TrainingTexts,
    pairs: TokenPairs,
    ratios: dict[float, tuple[Stage, ...]],
    trainer: SkipTrainer,
) -> dict[str, Any]:
    """What a reader of the weights must know."""
    curve: dict[int, dict[str, Any]] = {}
    for entry in trainer.state.log_history:
        losses = {key.removeprefix("eval_loss_"): round(value, 4) for key, value in entry.items() if "eval_loss_" in key}
        if losses:
            curve[entry["step"]] = {"step": entry["step"], "validation_loss": losses}
    settings = resolved_config(config)
    for group in ("model", "task", "strategy", "train"):
        settings[group].pop("description", None)
    return {
        "strategy": config.strategy["name"],
        "ratios": list(ratios),
        "kept_layers": {f"{ratio:g}": list(stages[0].kept_layers) for ratio, stages in ratios.items()},
        "later_stages": {f"{ratio:g}": [asdict(one) for one in stages[1:]] for ratio, stages in ratios.items()},
        "kept_counts": sorted({len(stage.kept_layers) for stages in ratios.values() for stage in stages}, reverse=True),
        "exits": list(trained_exits(config, shallow_view.num_layers(subject.model))),
        "prompt_layers": config.prompt_layers,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "examples": len(pairs),
        "left_out": pairs.left_out,
        "validation_examples": len(texts.validation),
        "data_sha256": texts.sha256,
        "seed": config.seed,
        "train_loss": next((entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry), None),
        "learning_curve": list(curve.values()),
        "based_on": subject.based_on,
        "config": settings,
        "environment": {**environment.code(), **environment.machine(str(trainer.args.device))},
    }


def _step_of_last_evaluation(trainer: SkipTrainer) -> int:
    steps = [entry["step"] for entry in trainer.state.log_history if any("eval_loss_" in key for key in entry)]
    return max(steps, default=-1)


def _save(module: TwoPass, subject: Subject, config: TrainingConfig, output: Path, record: dict[str, Any]) -> None:
    """Weights, tokenizer, and last the record: where it is, everything is."""
    trained: Any = module.model
    model = trained.merge_and_unload() if hasattr(trained, "merge_and_unload") else trained
    dtype = subject.model.dtype if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    model.config.use_cache = True
    model.to(dtype).save_pretrained(output)
    subject.tokenizer.save_pretrained(output)
    for file in output.glob("*.safetensors"):  # they are written for their owner alone
        file.chmod((output / "config.json").stat().st_mode)
    write_atomic(output / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(output / "checkpoints")
