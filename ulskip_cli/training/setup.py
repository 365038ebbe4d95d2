"""Prepare a training: load the model and tokenizer, tokenize the texts, make the schedules and the
loss module.
"""

import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import set_seed

from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.correction import KINDS, NO_PATCHES, read_record
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.schedule import Layers, Stage
from ulskip_cli.engines.own_responses import (
    OWN_RESPONSES,
    generate_own_responses,
    greedy_context,
)
from ulskip_cli.inference import loading, shallow_view
from ulskip_cli.inference.batching import free_bytes
from ulskip_cli.inference.patch_fit import PatchFitter
from ulskip_cli.inference.skip_adapter import SkipAdapter, zero_adapter
from ulskip_cli.tasks.encoding import EncodedExample, TextPair, pad_token_id
from ulskip_cli.training.adapter_loss import AdapterLoss
from ulskip_cli.training.data import (
    PairCollator,
    SimilarLengthSampler,
    TokenPairs,
    TrainingTexts,
)
from ulskip_cli.training.preflight import schedules, trained_exits
from ulskip_cli.training.two_pass_loss import TwoPassLoss, with_lora

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by train.precision
# Share of the free memory for the prompts' keys and values in the training of a skip adapter.
FROZEN_SHARE = 0.4


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that Trainer needs, derived once from the configuration."""

    config: TrainingConfig
    texts: TrainingTexts
    tokenizer: PreTrainedTokenizerBase
    train: TokenPairs
    validation: TokenPairs | None
    collator: PairCollator
    schedules: dict[float, tuple[Stage, ...]]  # the stages of a response, by ratio
    module: TwoPassLoss  # the model with its loss


def prepare_training(
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    texts: TrainingTexts,
    progress: ProgressCallback,
) -> TrainingSetup:
    """Load the model, tokenize the texts and build the loss; raise UsageError if model or texts do
    not fit the settings.
    """
    progress.phase(f"load {config.model.label}")
    model = _initial_model(config)
    depth = shallow_view.num_layers(model)
    progress.phase("tokenize", len(texts.train))

    def tokenized(part: list[TextPair]) -> TokenPairs:
        pairs = texts.formatter.tokenize(tokenizer, part)
        return TokenPairs(pairs, config.train.max_length)

    has_references = config.train.responses != "own"  # else they may be missing or too long
    train = tokenized([(prompt, text * has_references) for prompt, text in texts.train])
    validation = tokenized(texts.validation) if texts.validation else None
    train, lengths = with_responses(config, model, tokenizer, train, progress)
    stages_by_ratio = schedules(config, depth, lengths)
    collator = PairCollator(pad_token_id(tokenizer))
    module = (
        build_adapter_loss(config, model, train, collator, stages_by_ratio, progress)
        if config.train.method == "adapter"
        else build_loss(config, model, trained_exits(config, depth))
    )
    return TrainingSetup(
        config, texts, tokenizer, train, validation, collator, stages_by_ratio, module
    )


def _initial_model(config: TrainingConfig) -> PreTrainedModel:
    """Load the model. Weights are trained in float32, because bfloat16 would round small updates to
    zero.
    """
    # adapters are always float32
    dtype = "float32" if config.train.method == "full" else config.model.dtype
    # Trainer moves the model to its device, but answers and patches are computed before.
    computes = config.train.method == "adapter" or config.train.responses != "reference"
    device = config.model.device if computes else "cpu"
    return loading.load(config.model.replace(dtype=dtype, device=device)).model


def with_responses(
    config: TrainingConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    references: TokenPairs,
    progress: ProgressCallback,
) -> tuple[TokenPairs, list[int]]:
    """Return the prompts of `references` with the responses that `train.responses` names, and the
    ends of prompts that `train.prompt_share` asks for; too short responses are left out. Also
    return the lengths of the responses without the ends of prompts.
    """
    train = config.train
    examples, too_long = list(references), references.num_too_long
    if length := config.own_length:
        room = (ModelFolder(config.model).metadata.context or sys.maxsize) - length
        examples = [example for example in examples if len(example.prompt_ids) <= room]
        too_long += len(references) - len(examples)
        if not examples:
            raise UsageError(
                f"expected prompts of at most {room} tokens, so that own answers of {length} tokens"
                " fit into the model's context, got only longer ones; lower max_new_tokens"
            )
    prompts = [example.prompt_ids for example in examples]
    if length:
        file = user_path(train.own.file or Path(config.output) / OWN_RESPONSES, "train.own.file")
        context = greedy_context(pad_token_id(tokenizer), length, config.seed)
        answers = generate_own_responses(model, prompts, train.own, context, file, progress)
        set_seed(config.seed)  # sampled answers change the random state, stored ones do not
        answered, examples = examples, list[EncodedExample]()
        for example, several in zip(answered, answers, strict=True):
            examples += [example] if train.responses == "both" else []
            examples += [EncodedExample(example.prompt_ids, answer) for answer in several]
    lengths = [len(example.response_ids) for example in examples]
    if train.prompt_share:
        for prompt in prompts:
            cut = max(1, round(len(prompt) * (1 - train.prompt_share)))
            examples.append(EncodedExample(prompt[:cut], prompt[cut:]))
    # The full model predicts the first token, so an adapter learns from the others.
    shortest = 2 if train.method == "adapter" else 1
    usable = [example for example in examples if len(example.response_ids) >= shortest]
    if not usable:
        raise UsageError(
            f"expected responses with {shortest} or more tokens, got only shorter ones; use other"
            " data"
        )
    pairs = TokenPairs(usable, train.max_length)
    pairs.num_too_long += too_long
    return pairs, lengths


def trained_start(folder: Path, kept_sets: Sequence[Layers], config: TrainingConfig) -> SkipAdapter:
    """Return the adapter that is trained further; raise UsageError if its weights, layers or ranks
    differ.

    Patches in closed form have no LoRA, so any rank can be added.
    """
    read_record(folder, config.model, "train.start")
    start = SkipAdapter.load(folder)
    rank, record = config.train.lora.rank, start.record
    asked = (tuple(kept_sets), config.correction.kind, rank)
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
    collator: PairCollator,
    stages_by_ratio: Mapping[float, tuple[Stage, ...]],
    progress: ProgressCallback,
) -> AdapterLoss:
    """Build the loss of a skip adapter, which starts from patches in closed form."""
    train, correction = config.train, config.correction
    kind = KINDS[correction.kind]
    kept_sets = list(
        dict.fromkeys(stage.kept_layers for stages in stages_by_ratio.values() for stage in stages)
    )
    model.requires_grad_(False)
    if train.start is not None:
        start = trained_start(user_path(train.start, "train.start"), kept_sets, config)
    elif kind is not NO_PATCHES:
        chosen = random.Random(config.seed).sample(
            examples, min(correction.examples, len(examples))
        )
        report = progress.phase(f"fit patches on {len(chosen)} examples", len(kept_sets))
        fitter = PatchFitter(model, chosen, collator.pad_token_id)
        start = fitter.fit(kept_sets, kind, report=report)
    else:
        start = zero_adapter(model, kept_sets, kind)
    max_bytes = int(FROZEN_SHARE * free_bytes(model.device))
    set_seed(config.seed)  # the first LoRA matrices are random
    module = AdapterLoss(model, start, train, max_bytes)
    # A training of less than an epoch reads only the first examples of Trainer's order.
    batch = train.batch_size * train.gradient_accumulation_steps
    count = train.max_steps * batch if train.max_steps else train.epochs * len(examples)
    order = SimilarLengthSampler(examples.response_lengths(), train.batch_size, config.seed)
    read = [examples[i] for i in list(order)[: math.ceil(count)]]
    dtype = AUTOCAST.get(train.precision)
    with torch.autocast(model.device.type, dtype, enabled=dtype is not None):
        report = progress.phase("encode prompts and responses", len(read))
        module.outputs.prepare(read, module.needs_states, report)
    return module


def build_loss(
    config: TrainingConfig, model: PreTrainedModel, exits: tuple[int, ...]
) -> TwoPassLoss:
    """Build the loss module, with LoRA or frozen embeddings."""
    train = config.train
    if train.method == "lora":
        model, _ = with_lora(model, range(shallow_view.num_layers(model)), train.lora)
    elif train.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    return TwoPassLoss(model, config.prompt_layers, train, exits)
