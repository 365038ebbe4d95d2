"""The engines and what they support. Imports no torch and none of the engines' packages."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.weight_sizes import WeightSizes


@dataclass(frozen=True)
class EngineSpec:
    """The properties of an engine."""

    # Formats for engine.weights: bits per weight of the layers, and of embedding and head. The engines of torch have none.
    weights: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    modules: tuple[str, ...] = ()  # packages, of which one must be installed
    install: str = ""  # how to install them
    variable: str = ""  # environment variable that names an own build instead
    has_one_depth: bool = False  # prompts and all decode steps run through the same layers

    @property
    def is_runtime(self) -> bool:
        """True if another library than torch decodes, with a copy of the weights."""
        return bool(self.modules)


_FLOATS = {"f32": (32, 32), "f16": (16, 16), "bf16": (16, 16)}
ENGINES = {
    "auto": EngineSpec(),
    "torch": EngineSpec(),
    "transformers": EngineSpec(),
    "llama_cpp": EngineSpec(
        {**_FLOATS, "q8_0": (8.5, 8.5), "q4_0": (4.5, 8.5)},
        ("llama_cpp",),
        "pip install 'ulskip[llama-cpp]'",
    ),
    "openvino": EngineSpec(
        {"f32": (32, 32), "f16": (16, 16), "int8": (8, 8), "int4": (4.25, 8)}, ("openvino",), "pip install 'ulskip[openvino]'"
    ),
    "vllm": EngineSpec(
        _FLOATS, ("vllm",), "make vllm, and set ULSKIP_VLLM_PYTHON=.venv-vllm/bin/python", "ULSKIP_VLLM_PYTHON", True
    ),
}


def require_packages(engine: str) -> None:
    """Raise UsageError if the packages of an engine are missing."""
    spec = ENGINES[engine]
    if spec.is_runtime and not any(find_spec(name) for name in spec.modules) and not os.environ.get(spec.variable):
        raise UsageError(
            f"engine={engine} requires the package {' or '.join(spec.modules)}, which is not installed; run: {spec.install}"
        )


def refuse_runtime(command: str, engine: str) -> None:
    """Raise UsageError if a command, which needs torch, is asked to decode with another library."""
    if ENGINES[engine].is_runtime:
        raise UsageError(f"{command} is not supported with engine={engine}; use engine=auto")


def in_format(weights: WeightSizes | None, engine: str, name: str | None, bits: float) -> WeightSizes | None:
    """Return sizes of weights of `bits` bits each in the format `name` of an engine; None keeps the model's own format."""
    if weights is None or name is None:
        return weights
    layers, head = (one / bits for one in ENGINES[engine].weights[name])
    scaled = (tuple(round(size * layers) for size in sizes) for sizes in (weights.layers, weights.attention, weights.mlp))
    return WeightSizes(round(weights.head * head), next(scaled), weights.patch, *scaled)
