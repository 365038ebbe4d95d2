"""The files of a checkpoint: their location, the record of the training, and the copy of a GGUF
file in the format of Hugging Face, which is made once and kept in the user's cache.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging

from ulskip_cli.core import environment
from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import (
    JsonObject,
    all_printable,
    cache_dir,
    lock,
    noticing_full_disk,
    read_object,
    replacing,
    user_path,
)
from ulskip_cli.core.fingerprint import TOKENIZER_FILES, file_fingerprint
from ulskip_cli.core.gguf_header import read_gguf_header
from ulskip_cli.core.model_metadata import ModelConfig, ModelFolder
from ulskip_cli.core.options import Stored, parse
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.schedule import Stage

# Files that belong to the weights.
COMPANIONS = (*TOKENIZER_FILES, "LICENSE*", "NOTICE*", "USE_POLICY*")
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
TRAINING = "training.json"  # the record of a training, beside the weights
# Special tokens that end an answer, as in llama.cpp; the header of a file names only one.
_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
)


def fetch_model_folder(model: ModelConfig, progress: ProgressCallback | None = None) -> Path:
    """Return the folder of a model's files, downloaded or converted if needed; raise UsageError if
    a download fails.
    """
    folder = ModelFolder(model)
    folder.check_installed()
    if folder.gguf_file:
        return converted_gguf(folder.gguf_file, folder.model.dtype, progress or ProgressCallback())
    if model.source != "hf" or user_path(model.path, "model.path").exists():
        return folder.file.parent
    from huggingface_hub import snapshot_download

    wanted = ["config.json", *_WEIGHTS, *COMPANIONS]
    try:
        with environment.offline_if_hub_unreachable():
            return Path(snapshot_download(model.path, allow_patterns=wanted))
    except Exception as error:
        raise UsageError(
            f"cannot download model.path={model.path} from the Hugging Face hub ({reason(error)});"
            " correct the id, or give a local folder"
        ) from None


class _EarlierTraining(Stored):
    """The keys of an earlier training in a training.json, from which the initial weights came."""

    strategy: str
    steps: int
    based_on: "_EarlierTraining | None" = None


class _StoredTraining(_EarlierTraining):
    """The keys of a training.json that describe how the weights were trained."""

    kept_counts: list[int]
    ratios: list[float] | None = None
    kept_layers: dict[str, list[int]] | None = None
    later_stages: dict[str, list[Stage]] | None = None
    exits: list[int] | None = None
    prompt_layers: str | None = None
    trained_on: JsonObject | None = None
    warnings: tuple[str, ...] = ()


def _training_in(folder: str | Path) -> _StoredTraining | None:
    """Return the record of the training of the weights in a folder; None without one."""
    file = Path(folder) / TRAINING
    record = read_object(file) or {}
    if "kept_counts" not in record:  # of another program
        return None
    return parse(_StoredTraining, all_printable(record), file=file)


def training_notes(folder: str | Path) -> JsonObject:
    """Return what a row says of the training of the weights in a folder, from its training.json:
    how they were trained for layer skipping, for which strategy and layers, and on what.
    """
    training = _training_in(folder)
    if training is None:
        return {"training": None, "trained_for": None}
    schedule_keys = {"strategy", "ratios", "kept_layers", "later_stages", "exits", "prompt_layers"}
    return {
        "training": _training_text(training) + ("; it diverged" if training.warnings else ""),
        "trained_for": training.model_dump(mode="json", include={*schedule_keys, "trained_on"}),
    }


def _training_text(training: _StoredTraining) -> str:
    """Describe a training in words, with the steps of earlier trainings by the same strategy."""
    if training.strategy == "full":
        return f"without skipping, {training.steps} steps"
    drawn = " drawn per step" if len(training.kept_counts) > 1 else ""
    if any((training.later_stages or {}).values()):
        drawn = " by position"
    steps, before = training.steps, training.based_on
    while before and before.strategy == training.strategy:
        steps, before = steps + before.steps, before.based_on
    if training.exits:
        return f"with early exit at {', '.join(map(str, training.exits))} layers, {steps} steps"
    counts = ", ".join(map(str, training.kept_counts))
    return f"with {training.strategy} skipping: {counts} layers{drawn}, {steps} steps"


def training_record(config: ModelConfig) -> JsonObject | None:
    """Return a model's training.json without `learning_curve` and `environment`; None if the model
    has no such file.
    """
    folder = ModelFolder(config).file.parent
    if _training_in(folder) is None:
        return None
    record = read_object(folder / TRAINING) or {}
    return {k: v for k, v in record.items() if k not in ("learning_curve", "environment")}


def converted_gguf(file: Path, dtype: str, progress: ProgressCallback) -> Path:
    """Return the folder with the model of a GGUF file as safetensors of a type; raise UsageError if
    transformers cannot read the file.

    The first call makes the folder, or no folder if it is interrupted. Other types and other
    content have other folders.
    """
    name = f"{file.stem}-{dtype}-{file_fingerprint(file)[:12]}"
    folder = cache_dir() / "models" / name
    if folder.is_dir():
        return folder
    if not importlib.util.find_spec("gguf"):
        raise UsageError(f"{file} requires the package gguf; run: pip install gguf")
    with lock(folder.with_name(f"{name}.lock")), noticing_full_disk(folder):
        if not folder.is_dir():
            with replacing(folder) as staging:
                _convert(file, dtype, staging, progress)
    return folder


def _convert(file: Path, dtype: str, folder: Path, progress: ProgressCallback) -> None:
    """Write the model and tokenizer of a GGUF file to `folder`; all ends of answers become EOS."""
    model, tokenizer = _read_gguf(file, dtype, progress)
    for config in (model.config, model.generation_config):
        config.eos_token_id = _ends_of_answers(tokenizer, model.config.vocab_size) or None
    progress.phase("write the converted model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read_gguf(
    file: Path, dtype: str, progress: ProgressCallback
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file; raise UsageError if transformers cannot."""
    count = len(read_gguf_header(file).tensors)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    report = progress.phase(f"convert {file.name} to {dtype}, once", count)
    logging.disable_progress_bar()
    try:
        with counting_tensors(report):
            model = AutoModelForCausalLM.from_pretrained(
                dtype=dtype, quantization_config=GgufConfig(dequantize=True), **source
            )
            return model, AutoTokenizer.from_pretrained(**source)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(
            f"expected a GGUF file that transformers reads, got {file} ({reason(error)}); use the"
            " folder of the model in the format of Hugging Face"
        ) from error


def _ends_of_answers(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """Return the ids of tokens that end an answer; a tokenizer may have more tokens than the
    model.
    """
    vocabulary = tokenizer.get_vocab()
    ends = {tokenizer.eos_token_id, *(vocabulary.get(token) for token in _ENDS)} - {None}
    return sorted(end for end in ends if end < vocab_size)


@contextlib.contextmanager
def counting_tensors(report: Callable[[int], object]) -> Iterator[None]:
    """Report the number of tensors that transformers has read from a GGUF file. This replaces, as
    long as the context is open, a progress bar that transformers always shows.
    """
    original = modeling_gguf_pytorch_utils.tqdm

    def count(tensors: Iterable[object], **options: object) -> Iterator[object]:
        for done, tensor in enumerate(tensors, 1):
            yield tensor
            report(done)

    modeling_gguf_pytorch_utils.tqdm = count
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = original
