"""The copy of a GGUF file in the format of Hugging Face, which is made once and kept in the user's
cache.
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
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging

from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import cache_dir, lock, noticing_full_disk, replacing
from ulskip_cli.core.fingerprint import file_fingerprint
from ulskip_cli.core.gguf_header import read_gguf_header
from ulskip_cli.core.progress import ProgressCallback

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
    count = len(read_gguf_header(file).tensors)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    report = progress.phase(f"convert {file.name} to {dtype}, once", count)
    logging.disable_progress_bar()
    try:
        with counting_tensors(report):
            model = AutoModelForCausalLM.from_pretrained(
                dtype=dtype, quantization_config=GgufConfig(dequantize=True), **source
            )
            tokenizer = AutoTokenizer.from_pretrained(**source)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(
            f"expected a GGUF file that transformers reads, got {file} ({reason(error)}); use the"
            " folder of the model in the format of Hugging Face"
        ) from error
    size, vocabulary = model.config.vocab_size, tokenizer.get_vocab()
    ends = {tokenizer.eos_token_id, *(vocabulary.get(token, size) for token in _ENDS)}
    ends = {end for end in ends if end is not None and end < size}  # tokenizers may have more
    for config in (model.config, model.generation_config):
        config.eos_token_id = sorted(ends) or None
    progress.phase("write the converted model", 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def counting_tensors(report: Callable[[int], object]) -> Iterator[None]:
    """Report the number of tensors that transformers has read from a GGUF file, in place of a
    progress bar that it always shows.
    """
    bar = modeling_gguf_pytorch_utils.tqdm

    def count(tensors: Iterable[object], **options: object) -> Iterator[object]:
        for done, tensor in enumerate(tensors, 1):
            yield tensor
            report(done)

    modeling_gguf_pytorch_utils.tqdm = count
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar
