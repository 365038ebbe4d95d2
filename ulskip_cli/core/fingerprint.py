"""Keys identify values: settings, data, layers. Fingerprints identify files: those of a model, and
the code of a user.
"""

import hashlib
import json
import sys
from functools import cache
from itertools import takewhile
from pathlib import Path

from pydantic_core import to_jsonable_python

# Raised when a default of an option or the meaning of a stored file changes: settings are hashed
# without the values that are defaults.
VERSION = 2
# A file of more than _HASHED_BYTES is hashed in part: one block for each stride.
_BLOCK_BYTES, _STRIDE_BYTES, _HASHED_BYTES = 2**16, 2**20, 2**29
# Files beside the weights that decide prompts and answers: tokenizer, chat template, generation
# config.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
)


def digest(*parts: object) -> str:
    """Hash JSON values, options and dataclasses to 12 hexadecimal digits."""
    text = json.dumps(to_jsonable_python([VERSION, *parts], serialize_as_any=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def code_fingerprint(kind: type) -> str:
    """Hash the modules of a user's class, as they are at the first call; empty for a class of
    ulskip.
    """
    # The class and its bases up to the first one of ulskip.
    own = takewhile(lambda base: not base.__module__.startswith("ulskip_cli."), kind.__mro__)
    modules = [vars(sys.modules[base.__module__]) for base in own]
    files = [Path(module["__file__"]) for module in modules if module.get("__file__")]
    return digest([file.read_text("utf-8") for file in files]) if files else ""


def checkpoint_fingerprint(config_file: Path, weights: bool = True) -> str:
    """Hash a file, and the weights and tokenizer beside it; for a file from the hub return the
    commit.

    Of files above 512 MiB every sixteenth block of 64 KiB is hashed, because a large model would
    take minutes. Without `weights`, for a shape, only `config_file` is hashed.
    """
    folder = config_file.parent.resolve()
    if folder.parent.name == "snapshots":
        from huggingface_hub import constants

        if folder.is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
            return folder.name  # the commit
    files = set[Path]()
    for pattern in (*TOKENIZER_FILES, "*.safetensors") if weights else ():
        files.update(config_file.parent.glob(pattern))
    stamps = [_stamp(file) for file in sorted(filter(Path.is_file, files))]
    return _hashed(config_file.parent, config_file.read_bytes(), tuple(stamps))


def file_fingerprint(file: Path) -> str:
    """Hash the name and content of a file; see `checkpoint_fingerprint`."""
    return _hashed(file.parent, b"", (_stamp(file),))


def _stamp(file: Path) -> tuple[Path, int, int]:
    state = file.stat()
    return file, state.st_size, state.st_mtime_ns


@cache
def _hashed(folder: Path, config: bytes, stamps: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash a configuration and files with `stamps`: path, size and time of change. Files with the
    stamp of an earlier call are not read again.
    """
    content = hashlib.sha256(config)
    for file, size, _ in stamps:
        content.update(f"{file.relative_to(folder)} {size}".encode())
        stride = _BLOCK_BYTES if size <= _HASHED_BYTES else _STRIDE_BYTES
        with file.open("rb") as stream:
            for start in range(0, size, stride):
                stream.seek(start)
                content.update(stream.read(_BLOCK_BYTES))
    return content.hexdigest()
