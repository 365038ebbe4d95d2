"""Find the checkpoint from which an interrupted training run continues."""

import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch.nn import Module
from transformers import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from ulskip_cli.core.progress import ProgressCallback


def last_checkpoint(folder: Path, progress: ProgressCallback) -> str | None:
    """Return the newest readable checkpoint, or None; newer ones that cannot be read are removed.

    A killed process leaves a cut-off checkpoint, and a crash of the machine leaves damaged files.
    """
    while newest := get_last_checkpoint(folder):
        if _is_readable(Path(newest)):
            return str(newest)
        progress.phase(f"remove the unreadable {newest}", 1)
        shutil.rmtree(newest)
    return None


def checkpoint_bytes(module: Module) -> int:
    """Return the bytes of a checkpoint: the weights, and two moments of every trained weight."""
    return sum(
        p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in module.parameters()
    )


def _is_readable(checkpoint: Path) -> bool:
    try:  # Trainer writes its state last
        TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            safe_open(file, "pt").keys()  # type: ignore[no-untyped-call]
        archives = map(zipfile.ZipFile, checkpoint.glob("*.pt*"))
        return bool(weights) and all(archive.testzip() is None for archive in archives)
    except (FileNotFoundError, ValueError, TypeError, SafetensorError, zipfile.BadZipFile):
        return False
