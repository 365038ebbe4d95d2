"""Hand-offs of keys and values: one file per request and worker, in a folder that both servers
see.
"""

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ulskip_vllm.pair_export import SetupError

_NAME = re.compile(r"[0-9a-f]{32}")


class HandoffError(RuntimeError):
    """A hand-off is missing or belongs to another request or pair; the message is one line."""


def is_name(value: Any) -> bool:
    """Return True for the name of a hand-off, which becomes part of a file name."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def make_private(folder: Path) -> Path:
    """Create a folder for hand-offs, and return it; raise SetupError if other users can read, write
    or replace it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SetupError(
            f"expected {folder} to be a folder of this user with mode 700, because hand-offs"
            f" contain prompts, got mode {stat.filemode(status.st_mode)} of user {status.st_uid};"
            " set another --handoff-dir, or run chmod 700 on it"
        )
    return folder


def hash_tokens(token_ids: Sequence[int]) -> str:
    """Return a hash of a prompt."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()


@dataclass(frozen=True)
class HandoffFolder:
    """The shared folder, as one worker or scheduler uses it."""

    folder: Path
    max_age_seconds: float
    rank: int = 0  # of the worker
    num_ranks: int = 1

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.{self.rank}-of-{self.num_ranks}.safetensors"

    def write(self, name: str, layers: Sequence[torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Store the blocks of the kept layers; the file appears complete or not at all."""
        file = self._file(name)
        part = file.with_suffix(".part")
        try:
            tensors = {str(i): blocks.contiguous().cpu() for i, blocks in enumerate(layers)}
            save_file(tensors, part, {"facts": json.dumps(facts, sort_keys=True)})
            part.replace(file)
        except (OSError, SafetensorError):
            part.unlink(missing_ok=True)
            raise

    def read(
        self,
        name: str,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
        facts: Mapping[str, Any],
        device: torch.device,
    ) -> list[torch.Tensor]:
        """Return the stored blocks of all layers; raise HandoffError if they are missing or their
        facts or shapes differ.
        """
        file = self._file(name)
        try:
            with safe_open(file, "pt", str(device)) as stored:
                found = json.loads((stored.metadata() or {}).get("facts", "{}"))
                for key, expected in facts.items():
                    if found.get(key) != expected:
                        raise HandoffError(_differs(key, expected, found.get(key)))
                layers = [stored.get_tensor(str(i)) for i in range(len(shapes))]
        except (OSError, SafetensorError, ValueError, AttributeError) as error:
            raise HandoffError(
                f"expected the hand-off {file}, got an error: {str(error)[:80]!r}; both servers"
                " need the same hand-off folder and tensor-parallel size, and a hand-off is"
                f" deleted after {self.max_age_seconds:g} s"
            ) from None
        for blocks, shape in zip(layers, shapes, strict=True):
            if (tuple(blocks.shape), blocks.dtype) != (shape, dtype):
                raise HandoffError(
                    _differs(
                        "blocks", f"{list(shape)} {dtype}", f"{list(blocks.shape)} {blocks.dtype}"
                    )
                )
        return layers

    def remove(self, name: str) -> None:
        """Delete the files of a hand-off, of all workers."""
        for file in self.folder.glob(f"{name}.*"):
            file.unlink(missing_ok=True)

    def keep(self, name: str) -> None:
        """Mark a hand-off as in use, so that it does not expire."""
        for file in self.folder.glob(f"{name}.*"):
            try:
                os.utime(file)
            except FileNotFoundError:
                continue

    def remove_expired(self) -> None:
        """Delete hand-offs that no server used for `max_age_seconds`."""
        oldest = time.time() - self.max_age_seconds
        for file in self.folder.iterdir():
            try:
                if is_name(file.name.split(".")[0]) and file.stat().st_mtime < oldest:
                    file.unlink()
            except FileNotFoundError:
                continue


def _differs(key: str, expected: Any, found: Any) -> str:
    return (
        f"expected a hand-off with {key} {str(expected)[:80]}, got {str(found)[:80]}; use two"
        " servers of one pair with equal dtype and block size"
    )
