"""Find the checkpoint from which an interrupted training run continues."""

import os
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch.nn import Module
from transformers import TrainerState

from ulskip_cli.core.errors import StorageError
from ulskip_cli.core.files import read_object
from ulskip_cli.core.progress import ProgressCallback

DAMAGED = "damaged-"


def last_checkpoint(folder: Path, progress: ProgressCallback) -> Path | None:
    """Return the newest intact checkpoint, or None.

    Newer incomplete checkpoints, left by a killed process, are removed. Newer damaged ones are renamed to `damaged-...`.
    """
    numbered = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*")]
    for _, checkpoint in sorted(((int(step), path) for step, path in numbered if re.fullmatch("[0-9]+", step)), reverse=True):
        if read_object(checkpoint / "trainer_state.json") is None:  # Trainer writes it last
            shutil.rmtree(checkpoint, ignore_errors=True)
        elif reason := _damage(checkpoint):
            aside = folder / f"{DAMAGED}{checkpoint.name}"
            progress.phase(f"set aside {aside}: {reason}", 1)
            if os.environ.get("RANK", "0") == "0":
                _rename(checkpoint, aside)
        else:
            return checkpoint
    return None


def checkpoint_bytes(module: Module) -> int:
    """Return the bytes of a checkpoint: the weights, and two moments of every trained weight."""
    return sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in module.parameters())


def _damage(checkpoint: Path) -> str | None:
    """Return the reason why a checkpoint cannot be continued, or None if its files are intact."""
    try:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "trainer_state.json is not a state of Trainer"
    if checkpoint.name != f"checkpoint-{state.global_step}":
        return f"trainer_state.json is of step {str(state.global_step)[:20]}"
    if not any(checkpoint.glob("*.safetensors")):
        return "the weights are missing"
    for file in sorted(checkpoint.iterdir()):
        try:
            if file.suffix == ".safetensors":
                safe_open(file, "pt").keys()  # type: ignore[no-untyped-call]
            elif file.suffix in (".pt", ".pth", ".bin") and (broken := zipfile.ZipFile(file).testzip()):
                return f"{file.name} is damaged at {broken}"
        except (OSError, SafetensorError, zipfile.BadZipFile) as error:
            return f"{file.name} is damaged ({' '.join(str(error).split())[:80]})"
    return None


def _rename(checkpoint: Path, aside: Path) -> None:
    try:
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
    except OSError as error:
        raise StorageError(f"cannot set aside the damaged {checkpoint} ({error.strerror}); remove it") from None
