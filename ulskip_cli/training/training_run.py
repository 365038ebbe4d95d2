"""One training, from its configuration to a plain model folder with its training.json."""

import contextlib
import json
import random
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, set_seed
from transformers.utils import logging

from ulskip_cli.core import environment, fingerprint
from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.correction import ADAPTER_FILE, KINDS, NO_PATCHES, read_adapter_file
from ulskip_cli.core.errors import RunError, UsageError, reason
from ulskip_cli.core.files import JsonObject, noticing_full_disk, user_path, write_atomic
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.options import Options, load_json, parse
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.schedule import Layers, Stage
from ulskip_cli.engines.loop import peak_bytes
from ulskip_cli.engines.own_responses import OWN_RESPONSES, generate_own_responses, greedy_request
from ulskip_cli.inference import loading, shallow_view
from ulskip_cli.inference.batching import free_bytes, is_out_of_memory
from ulskip_cli.inference.model_files import TRAINING, training_record
from ulskip_cli.inference.patch_fit import PatchFitter
from ulskip_cli.inference.skip_adapter import SkipAdapter, zero_adapter
from ulskip_cli.tasks.encoding import EncodedExample, TextPair, pad_token_id
from ulskip_cli.training.adapter_loss import AdapterLoss
from ulskip_cli.training.data import (
    PairCollator,
    TokenPairs,
    TrainingTexts,
    load_training_texts,
)
from ulskip_cli.training.preflight import trained_exits, trained_stages
from ulskip_cli.training.trainer import SkipTrainer, TrainingSetup, make_training_arguments
from ulskip_cli.training.two_pass_loss import LossWeights, TwoPassLoss, merged_lora, with_lora

# Share of the free memory for what the frozen full model computes in the training of an adapter.
FROZEN_MEMORY_SHARE = 0.4
DIVERGED = 2.0  # times the first loss, plus 1; noise of single steps is smaller


class CurvePoint(Options):
    """The validation losses at one step of a training run."""

    step: int
    # nats per token, by target ratio (`2x`) or by exit depth (`6`)
    validation_loss: dict[str, float]


class ExampleRange(Options):
    """Examples of a task's data, from the first to before the end."""

    locations: tuple[str, ...]  # hashes, because they may be paths
    first: int
    end: int


class TrainingRecord(Options):
    """The settings, data and results of a training run."""

    strategy: str
    ratios: tuple[float, ...]
    kept_layers: dict[str, Layers]  # the layers of the first decode steps, by ratio
    later_stages: dict[str, tuple[Stage, ...]]  # by ratio
    kept_counts: tuple[int, ...]  # all that were trained, descending
    exits: tuple[int, ...] = ()
    prompt_layers: str
    steps: int
    epochs: float
    examples: int
    left_out: int  # examples longer than `train.max_length`
    validation_examples: int
    data_sha256: str
    trained_on: ExampleRange
    seed: int
    first_loss: float | None = None  # of the first step
    train_loss: float | None = None  # the last logged one
    warnings: tuple[str, ...] = ()
    learning_curve: tuple[CurvePoint, ...]
    # record of the training that the initial weights come from, shortened
    based_on: JsonObject | None
    config: JsonObject
    environment: JsonObject
    identity: str  # a hash of everything that decides the weights
    seconds: float  # wall time since the training was started or resumed
    peak_memory_bytes: int  # of this process on its device since then
    resumed: bool


def run_training(config: TrainingConfig, progress: ProgressCallback) -> TrainingRecord:
    """Train, resume a killed run, or return a finished run's record; raise UsageError for bad
    settings, and RunError for NaN.
    """
    output = user_path(config.output, "output")
    folder = ModelFolder(config.model)
    config = _within_context(config, folder.metadata.context)
    tokenizer = loading.load_tokenizer(config.model, progress)
    texts = load_training_texts(config, tokenizer)
    # Before weights are loaded: a finished training returns at once, other folders are refused.
    identity, checkpoints = _identity(config, texts, folder), output / "checkpoints"
    finished = _finished_record(output, identity)
    if finished:  # a killed process may have left its checkpoints
        shutil.rmtree(checkpoints, ignore_errors=True)
        progress.note(
            f"{output} contains this training, which is finished; to train again, remove the folder"
            " or set another output=DIR"
        )
        return finished
    logging.disable_progress_bar()
    set_seed(config.seed)
    arguments = make_training_arguments(config)
    setup = prepare_training(config, texts, progress)
    trainer = _make_trainer(setup, progress, arguments)
    if trainer.is_world_process_zero():
        write_atomic(checkpoints / "identity", identity)
    began = time.perf_counter()
    with trainer.args.main_process_first(local=False):  # it removes unreadable checkpoints
        resume_from = last_checkpoint(checkpoints, progress)
    progress.note(f"the checkpoint goes to {output}/")
    _train(trainer, resume_from, output)
    seconds = round(time.perf_counter() - began, 1)
    record = _make_record(setup, trainer, identity, seconds, resumed=resume_from is not None)
    if any(not torch.isfinite(p).all() for p in setup.module.parameters()):
        raise RunError(
            "expected finite weights, got NaN or infinity; lower train.learning_rate"
            f" (now {config.train.learning_rate:g}), and set another output=DIR"
        )
    if trainer.is_world_process_zero():
        with noticing_full_disk(output):
            _save(setup, output, record)
    return record


def _within_context(config: TrainingConfig, context: int | None) -> TrainingConfig:
    """Return the configuration with a `train.max_length` that fits into the model's context."""
    if not context:
        return config
    length = min(context, config.train.max_length or context)
    return config.replace(train=config.train.replace(max_length=length))


def _make_trainer(
    setup: TrainingSetup, progress: ProgressCallback, arguments: TrainingArguments
) -> SkipTrainer:
    """Make the trainer, which moves the model to its device; raise RunError if memory does not
    suffice, and UsageError for arguments that Trainer refuses.
    """
    try:
        return SkipTrainer(setup, progress, arguments)
    except (ValueError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise RunError(f"out of memory ({reason(error)}); use a smaller model") from None
        raise UsageError(f"train.training_args: {reason(error)}") from None


def _train(trainer: SkipTrainer, resume_from: str | None, output: Path) -> None:
    """Train, from a checkpoint if there is one; raise RunError if memory or the disk of `output` is
    full.
    """
    try:  # trackers that `report_to` names may print, and standard output belongs to `--json`
        with contextlib.redirect_stdout(sys.stderr), noticing_full_disk(output):
            trainer.train(resume_from_checkpoint=resume_from)
    except Exception as error:
        if is_out_of_memory(error):
            raise RunError(f"out of memory ({reason(error)}); lower train.batch_size") from None
        raise


def prepare_training(
    config: TrainingConfig, texts: TrainingTexts, progress: ProgressCallback
) -> TrainingSetup:
    """Load the model, tokenize the texts and build the loss; raise UsageError if they do not fit
    the settings.
    """
    progress.phase(f"load {config.model.label}")
    model = _initial_model(config)
    depth, pad = shallow_view.num_layers(model), pad_token_id(texts.formatter.tokenizer)
    progress.phase("tokenize", len(texts.train))

    def tokenized(pairs: list[TextPair]) -> TokenPairs:
        return TokenPairs(texts.formatter.tokenize(pairs), config.train.max_length)

    pairs = texts.train
    if config.train.responses == "own":  # replace the references, which may be missing or too long
        pairs = [(prompt, "") for prompt, _ in pairs]
    references = tokenized(pairs)
    validation = tokenized(texts.validation) if texts.validation else None
    train, lengths = with_responses(config, model, references, pad, progress)
    stages_by_ratio = trained_stages(config, depth, lengths)
    if config.train.method == "adapter":
        module: TwoPassLoss = build_adapter_loss(
            config, model, train, pad, stages_by_ratio, progress
        )
    else:
        if config.train.method == "lora":
            model, _ = with_lora(model, range(depth), config.train.lora)
        elif config.train.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        exits = trained_exits(config, depth)
        weights = LossWeights.of(config.train)
        module = TwoPassLoss(model, config.prompt_layers, weights, exits)
    collator = PairCollator(pad)
    return TrainingSetup(config, texts, train, validation, collator, stages_by_ratio, module)


def _initial_model(config: TrainingConfig) -> PreTrainedModel:
    """Load the model. Trained weights are float32, because bfloat16 would round small updates to
    zero; below float32 adapters, the model keeps its dtype.
    """
    dtype = "float32" if config.train.method == "full" else config.model.dtype
    # Trainer moves the model to its device, but answers and patches are computed before.
    computes = config.train.method == "adapter" or config.train.responses != "reference"
    device = config.model.device if computes else "cpu"
    return loading.load(config.model.replace(dtype=dtype, device=device)).model


def with_responses(
    config: TrainingConfig,
    model: PreTrainedModel,
    references: TokenPairs,
    pad_token_id: int,
    progress: ProgressCallback,
) -> tuple[TokenPairs, list[int]]:
    """Return the prompts of `references` with the responses of `train.responses`, and ends of
    prompts as `train.prompt_share` asks; too short responses are left out. Also return the lengths
    of the answers among them, by which positional strategies choose layers.
    """
    train = config.train
    prompts = answered = list(references)
    if train.responses != "reference":
        prompts = _with_room(config, references)
        answered = _with_own_answers(config, model, prompts, pad_token_id, progress)
    examples = list(answered)
    if train.prompt_share:
        examples += _prompt_ends(prompts, train.prompt_share)
    # The full model predicts the first token, so an adapter learns from the others.
    shortest = 2 if train.method == "adapter" else 1
    usable = [example for example in examples if len(example.response_ids) >= shortest]
    if not usable:
        raise UsageError(
            f"expected responses with {shortest} or more tokens, got only shorter ones; use other"
            " data"
        )
    pairs = TokenPairs(usable, train.max_length)
    pairs.num_too_long += references.num_too_long + len(references) - len(prompts)
    return pairs, [len(example.response_ids) for example in answered]


def _with_room(config: TrainingConfig, examples: Sequence[EncodedExample]) -> list[EncodedExample]:
    """Select the examples whose prompt and own answer fit into the model's context; raise
    UsageError without any.
    """
    room = (ModelFolder(config.model).metadata.context or sys.maxsize) - config.own_answer_tokens
    fitting = [example for example in examples if len(example.prompt_ids) <= room]
    if not fitting:
        raise UsageError(
            f"expected prompts of at most {room} tokens, so that own answers of"
            f" {config.own_answer_tokens} tokens fit into the model's context, got only longer"
            " ones; lower max_new_tokens"
        )
    return fitting


def _with_own_answers(
    config: TrainingConfig,
    model: PreTrainedModel,
    references: Sequence[EncodedExample],
    pad_token_id: int,
    progress: ProgressCallback,
) -> list[EncodedExample]:
    """Return the prompts with the model's own answers, `train.own.samples` for each, generated or
    read from their file; with `train.responses=both`, each reference comes before the answers to
    its prompt.
    """
    train = config.train
    file = user_path(train.own.file or Path(config.output) / OWN_RESPONSES, "train.own.file")
    request = greedy_request(model, pad_token_id, config.own_answer_tokens, config.seed)
    prompts = [reference.prompt_ids for reference in references]
    answers = generate_own_responses(model, prompts, train.own, request, file, progress)
    set_seed(config.seed)  # sampled answers change the random state, stored ones do not
    examples = list[EncodedExample]()
    for reference, answers_to_prompt in zip(references, answers, strict=True):
        if train.responses == "both":
            examples.append(reference)
        examples += [EncodedExample(reference.prompt_ids, answer) for answer in answers_to_prompt]
    return examples


def _prompt_ends(examples: Sequence[EncodedExample], share: float) -> Iterator[EncodedExample]:
    """Yield each prompt without its end, a share of it, which is the response."""
    for example in examples:
        prompt = example.prompt_ids
        cut = max(1, round(len(prompt) * (1 - share)))
        yield EncodedExample(prompt[:cut], prompt[cut:])


def load_initial_adapter(
    folder: Path, kept_sets: Sequence[Layers], config: TrainingConfig
) -> SkipAdapter:
    """Return the adapter that is trained further; raise UsageError if its weights, layers, patches
    or rank are others than those of the configuration.
    """
    read_adapter_file(folder, config.model, "train.start")  # raises UsageError for other weights
    start = SkipAdapter.load(folder)
    rank, record = config.train.lora.rank, start.record
    asked = (tuple(kept_sets), config.correction.kind, rank)
    # Patches that a run fitted have no LoRA and no rank in their record, so any rank can be added.
    stored = (start.kept_sets, start.kind.name, record.get("lora_rank", rank))
    if stored != asked:
        raise UsageError(
            f"expected train.start={folder} to have layers, kind and LoRA rank {asked}, got"
            f" {stored}; use the settings of its training"
        )
    return start


def build_adapter_loss(
    config: TrainingConfig,
    model: PreTrainedModel,
    examples: TokenPairs,
    pad_token_id: int,
    stages_by_ratio: Mapping[float, tuple[Stage, ...]],
    progress: ProgressCallback,
) -> AdapterLoss:
    """Build the loss of a skip adapter, which starts from `train.start`, or from patches that are
    fitted in closed form. Freeze `model`.
    """
    train, correction = config.train, config.correction
    kind = KINDS[correction.kind]
    all_stages = chain.from_iterable(stages_by_ratio.values())
    kept_sets = list(dict.fromkeys(stage.kept_layers for stage in all_stages))  # each once
    model.requires_grad_(False)
    if train.start is not None:
        start = load_initial_adapter(user_path(train.start, "train.start"), kept_sets, config)
    elif kind is not NO_PATCHES:
        count = min(correction.examples, len(examples))
        chosen = random.Random(config.seed).sample(examples, count)
        report = progress.phase(f"fit patches on {len(chosen)} examples", len(kept_sets))
        fitter = PatchFitter(model, chosen, pad_token_id)
        start = fitter.fit(kept_sets, kind, report=report)
    else:
        start = zero_adapter(model, kept_sets, kind)
    max_bytes = int(FROZEN_MEMORY_SHARE * free_bytes(model.device))
    set_seed(config.seed)  # the first LoRA matrices are random
    return AdapterLoss(model, start, train, max_bytes)


def _identity(config: TrainingConfig, texts: TrainingTexts, folder: ModelFolder) -> str:
    """Return a hash of all that decides the weights: of texts and initial weights, not of their
    paths.
    """
    values = config.non_defaults(lambda key: config.changes_results(key, "train"))
    for name in ("task", "limit", "offset"):  # the texts stand for them
        values.pop(name, None)
    values.pop("output", None)  # the place of the weights does not change them
    values["model"].pop("path")
    initial_weights = [folder.fingerprint]
    if config.train.start is not None:
        adapter = user_path(config.train.start, "train.start") / ADAPTER_FILE
        initial_weights.append(fingerprint.checkpoint_fingerprint(adapter))
        values["train"].pop("start")
    # The model's own answers, and the layers of some strategies at late positions, depend on it.
    answer_tokens = config.answer_tokens
    strategy, num_layers = config.strategy, folder.metadata.num_layers
    layers = trained_stages(config, num_layers), trained_exits(config, num_layers)
    # The layers stand for the code. A strategy that still needs calibration has none yet, so its
    # code counts.
    code = "" if strategy.is_calibrated else strategy.code_fingerprint
    return fingerprint.digest(values, answer_tokens, texts.sha256, initial_weights, layers, code)


def _finished_record(output: Path, identity: str) -> TrainingRecord | None:
    """Return the record of this training if it is complete, or None if it can begin or continue;
    raise UsageError if the output folder holds anything else.
    """
    finished, begun = output / TRAINING, output / "checkpoints" / "identity"
    if finished.is_file():
        values = load_json(finished, "a training record")
        if values.get("identity") == identity:
            return parse(TrainingRecord, values, file=finished)
    elif begun.is_file():
        if begun.read_bytes() == identity.encode():
            return None
    elif _is_unused(output):
        return None
    raise UsageError(
        f"output={output} contains other files, or a finished or unfinished training run with"
        " other settings or data; set another output=DIR"
    )


def _is_unused(output: Path) -> bool:
    """Return True if the folder is missing, or holds only what a killed process leaves before it
    stores its identity: own answers, and in checkpoints/ hidden temporary files.
    """
    if not output.is_dir():
        return not output.exists()
    names = {file.name for file in output.iterdir()}
    has_checkpoints = any((output / "checkpoints").glob("[!.]*"))
    return names <= {OWN_RESPONSES, "checkpoints"} and not has_checkpoints


def _make_record(
    setup: TrainingSetup, trainer: SkipTrainer, identity: str, seconds: float, resumed: bool
) -> TrainingRecord:
    """Make the record of a finished training."""
    config, by_ratio, state = setup.config, setup.stages_by_ratio, trainer.state
    num_examples = len(setup.texts.train) + len(setup.texts.validation)
    counts = {len(stage.kept_layers) for stages in by_ratio.values() for stage in stages}
    # Logged steps are {"step": 10, "loss": 2.1}; other entries have no loss.
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return TrainingRecord(
        strategy=config.strategy.name,
        ratios=tuple(by_ratio),
        kept_layers={f"{ratio:g}": stages[0].kept_layers for ratio, stages in by_ratio.items()},
        later_stages={f"{ratio:g}": stages[1:] for ratio, stages in by_ratio.items()},
        kept_counts=tuple(sorted(counts, reverse=True)),
        exits=setup.module.exits,
        prompt_layers=config.prompt_layers,
        steps=state.global_step,
        epochs=state.epoch,
        examples=len(setup.train),
        left_out=setup.train.num_too_long,
        validation_examples=len(setup.validation or ()),
        data_sha256=setup.texts.sha256,
        trained_on=ExampleRange(
            locations=(fingerprint.digest(config.task.location),),
            first=config.offset,
            end=config.offset + (config.limit or num_examples),
        ),
        seed=config.seed,
        first_loss=losses[0] if losses else None,
        train_loss=losses[-1] if losses else None,
        warnings=_warnings(config, losses),
        learning_curve=_learning_curve(state.log_history),
        based_on=training_record(config.model),
        config=config.resolved(),
        environment={**environment.versions(), **environment.machine(str(trainer.args.device))},
        identity=identity,
        seconds=seconds,
        peak_memory_bytes=peak_bytes(trainer.args.device),
        resumed=resumed,
    )


def _learning_curve(log: Sequence[Mapping[str, float]]) -> tuple[CurvePoint, ...]:
    """Return the evaluations in Trainer's log, e.g. `{"step": 10, "eval_loss_2x": 2.3}`; of several
    at a step, the last.
    """
    curve = {}
    for entry in log:
        losses = {
            name.removeprefix("eval_loss_"): round(loss, 4)
            for name, loss in entry.items()
            if name.startswith("eval_loss_")
        }
        if losses:
            step = int(entry["step"])
            curve[step] = CurvePoint(step=step, validation_loss=losses)
    return tuple(curve.values())


def _warnings(config: TrainingConfig, losses: Sequence[float]) -> tuple[str, ...]:
    """Return a warning if the logged losses end far above their start."""
    if not losses or losses[-1] <= DIVERGED * losses[0] + 1:
        return ()
    lowered = f"train.learning_rate (now {config.train.learning_rate:g})"
    if config.train.method == "adapter":
        lowered += f" and correction.learning_rate (now {config.correction.learning_rate:g})"
    return (
        f"the training diverged: its loss rose from {losses[0]:.3g} to {losses[-1]:,.3f}, so do not"
        f" use its result; lower {lowered}, and set another output=DIR",
    )


def _save(setup: TrainingSetup, output: Path, record: TrainingRecord) -> None:
    """Save the skip adapter, or the model with its tokenizer, and then the record, so that a folder
    with a record is complete; remove the checkpoints.
    """
    for unfinished in output.glob(".tmp*"):  # of safetensors, in a process that was killed
        unfinished.unlink()
    if isinstance(setup.module, AdapterLoss):
        setup.module.adapter(_adapter_record(setup, record)).save(output)
    else:
        model = merged_lora(setup.module.model)
        # Not the float32 of the training: the requested dtype, or for `auto` that of the source.
        dtype_name = ModelFolder(setup.config.model).model.dtype
        dtype = model.dtype if dtype_name == "auto" else getattr(torch, dtype_name)
        model.config.use_cache = True
        model.to(dtype).save_pretrained(output)
        setup.texts.formatter.tokenizer.save_pretrained(output)
        for file in output.glob("*.safetensors"):  # safetensors lets only the owner read its files
            file.chmod((output / "config.json").stat().st_mode)
    text = json.dumps(record.plain(), indent=1, ensure_ascii=False)
    write_atomic(output / TRAINING, text + "\n")
    shutil.rmtree(output / "checkpoints")


def _adapter_record(setup: TrainingSetup, record: TrainingRecord) -> dict[str, object]:
    """Return what adapter.json says of the base model and the training."""
    model, train = setup.config.model, setup.config.train
    return {
        "base": {"model": model.label, "fingerprint": ModelFolder(model).fingerprint},
        "task": setup.config.task.name,
        "strategy": record.strategy,
        "prompt_layers": record.prompt_layers,
        "lora_rank": train.lora.rank,
        "training": {
            "steps": record.steps,
            "examples": record.examples,
            "tokens": sum(setup.train.response_lengths()),
            "responses": train.responses,
            "start": train.start,
            "identity": record.identity,
            "trained_on": record.trained_on.plain(),
        },
    }


def last_checkpoint(folder: Path, progress: ProgressCallback) -> str | None:
    """Return the newest readable checkpoint, or None; remove newer ones, which a killed process or
    a crash of the machine has damaged.
    """
    while newest := get_last_checkpoint(folder):
        if _is_readable(Path(newest)):
            return str(newest)
        progress.phase(f"remove the unreadable {newest}")
        shutil.rmtree(newest)
    return None


def _is_readable(checkpoint: Path) -> bool:
    """Return True if a checkpoint has all its files, with right checksums of zipped ones."""
    try:  # Trainer writes its state last, so a checkpoint that was cut off has none
        TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            safe_open(file, "pt").keys()  # type: ignore[no-untyped-call]
        archives = map(zipfile.ZipFile, checkpoint.glob("*.pt*"))  # optimizer and random states
        return bool(weights) and all(archive.testzip() is None for archive in archives)
    except (FileNotFoundError, ValueError, TypeError, SafetensorError, zipfile.BadZipFile):
        return False
