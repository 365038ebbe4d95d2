"""Prepare a training: load the model and tokenizer, tokenize the texts, make the schedules and the loss module."""

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.config_schema import TrainingConfig, TrainOptions
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.inference import loading, shallow_view
from ulskip_cli.strategies.schedule import Stage
from ulskip_cli.strategies.training_schedules import schedules, trained_exits
from ulskip_cli.training.data import TokenizedData, TokenPairs, TrainingTexts, collator_for, train_tokenizer
from ulskip_cli.training.two_pass_loss import LossWeights, TwoPassLoss, add_dropout


@dataclass(frozen=True)
class SourceModel:
    """The model that a training starts from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase  # the model's own, or a new one for random weights
    based_on: dict[str, Any] | None  # shortened record of the training that the weights come from


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that Trainer needs, derived once from the configuration."""

    config: TrainingConfig
    texts: TrainingTexts
    source: SourceModel
    data: TokenizedData
    schedules: dict[float, tuple[Stage, ...]]  # the stages of a response, by ratio
    module: TwoPassLoss  # the model with its loss


def prepare_training(config: TrainingConfig, texts: TrainingTexts, progress: ProgressCallback) -> TrainingSetup:
    """Load the model, tokenize the texts and build the loss; raise UsageError if model or texts do not fit the settings."""
    progress.phase(f"load {config.model.label}", 1)
    source = load_source_model(config, texts)
    depth = shallow_view.num_layers(source.model)
    on_progress = progress.phase("tokenize", len(texts.train))
    max_length = config.train.max_length
    train = TokenPairs(source.tokenizer, texts.train, texts.formatter, max_length, on_progress)
    stages_by_ratio = schedules(config, depth, train.response_lengths())
    held_out = texts.validation
    validation = TokenPairs(source.tokenizer, held_out, texts.formatter, max_length) if held_out else None
    data = TokenizedData(train, validation, collator_for(source.tokenizer))
    module = build_loss(config, source.model, trained_exits(config, depth))
    return TrainingSetup(config, texts, source, data, stages_by_ratio, module)


def load_source_model(config: TrainingConfig, texts: TrainingTexts) -> SourceModel:
    """Load model and tokenizer. Weights are trained in float32, because bfloat16 would round small updates to zero."""
    if config.model.source == "random":
        length = config.train.max_length or 2048
        tokenizer = train_tokenizer(texts.train, config.train.vocab_size, length)
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        model = loading.random_model(replace(config.model, dtype="float32"), config.seed, vocab_size=len(tokenizer), **ids)
        source = SourceModel(model, tokenizer, None)
    else:
        dtype = config.model.dtype if config.train.method == "lora" else "float32"  # peft's adapters are always float32
        loaded = loading.load(replace(config.model, dtype=dtype, device="cpu"))
        assert loaded.tokenizer is not None
        source = SourceModel(loaded.model, loaded.tokenizer, loading.training_record(config.model))
    if config.train.attention:
        try:
            source.model.set_attn_implementation(config.train.attention)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"train.attention={config.train.attention} is not supported ({str(error).splitlines()[0]}); "
                "use train.attention=null"
            ) from None
    return source


def build_loss(config: TrainingConfig, model: PreTrainedModel, exits: tuple[int, ...]) -> TwoPassLoss:
    """Build the loss module with its teacher, dropout, adapters and frozen embeddings."""
    train = config.train
    teacher = None
    if train.teacher == "initial" and train.distill_weight > 0:
        # With adapters no copy is needed: the base without its adapters is the initial model.
        teacher = model if train.method == "lora" else copy.deepcopy(model).eval().requires_grad_(False)
    if train.dropout:
        add_dropout(model, train.dropout)
    trained: Any = model
    if train.method == "lora":
        trained = _with_lora(model, train)
    elif train.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    weights = LossWeights(train.ce_weight, train.full_weight, train.distill_weight, train.label_smoothing)
    return TwoPassLoss(trained, config.prompt_layers, weights, teacher, exits)


def _with_lora(model: PreTrainedModel, train: TrainOptions) -> Any:
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
            warnings.simplefilter("ignore", FutureWarning)  # peft reads a deprecated name of transformers
            return get_peft_model(model, lora)
    except ValueError as error:
        raise UsageError(
            f"expected train.lora.targets to name linear layers or all-linear, got {train.lora.targets} "
            f"({str(error).splitlines()[0][:200]}); train.lora.targets=all-linear adapts every linear layer"
        ) from None
