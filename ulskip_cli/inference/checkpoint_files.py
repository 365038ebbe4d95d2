"""Find the folder with the files of a checkpoint, and download the files of a hub model."""

from pathlib import Path

from ulskip_cli.core import environment
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.model_metadata import TOKENIZER_FILES
from ulskip_cli.inference.loading import origin

COMPANIONS = (
    *TOKENIZER_FILES,
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)  # files that belong to the weights
_NEEDED = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    *COMPANIONS,
)


def folder_of(model: ModelConfig) -> Path:
    """Return the folder of a model's files, downloaded if needed; raise UsageError for random
    weights or a failed download.
    """
    if model.source == "random":
        raise UsageError(
            "expected a model with a checkpoint, got model=random; use model=hf"
            " model.path=FOLDER_OR_HUB_ID"
        )
    path, revision = origin(model)
    folder = user_path(path, "model.path")
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    wanted = [*_NEEDED, "*.py"] if model.trust_remote_code else list(_NEEDED)
    try:
        with environment.offline_if_hub_unreachable():
            return Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except Exception as error:
        reason = str(error).split("\n")[0].strip()[:120]
        raise UsageError(
            f"cannot download model.path={path} from the Hugging Face hub ({reason}); correct the"
            " id, or give a local folder"
        ) from None
