"""The engines and what they support. Imports no torch and none of the engines' packages."""

import os
from collections.abc import Mapping, Set
from importlib.util import find_spec
from typing import ClassVar

from pydantic import field_validator

from ulskip_cli.core import capabilities
from ulskip_cli.core.capabilities import ALL, Need
from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.options import Choice, option
from ulskip_cli.core.weight_sizes import WeightSizes


class Engine(Choice):
    """A library that decodes. Presets are in `configs/engine/`."""

    supports: ClassVar[frozenset[Need]] = ALL - {Need.OTHER_ENGINE}
    # Formats of weights: bits per weight of the layers, and of embedding and head. Engines of torch keep the model's.
    formats: ClassVar[Mapping[str, tuple[float, float]]] = {}
    modules: ClassVar[tuple[str, ...]] = ()  # packages, of which one must be installed
    install: ClassVar[str] = ""  # how to install them
    variable: ClassVar[str] = ""  # environment variable that names an own build instead

    weights: str | None = option(None, "format of the weights, e.g. q4_0; null: that of the model")

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, value: str | None) -> str | None:
        if value is not None and not cls.formats:
            raise UsageError(
                f"engine.weights={value} requires an engine of another library; use model.dtype or model.quantization"
            )
        return value if value is None else require_choice("engine.weights", value, cls.formats)

    @property
    def is_runtime(self) -> bool:
        """True if another library than torch decodes, with a copy of the weights."""
        return bool(self.formats)

    def check(self, needs: Set[Need]) -> None:
        """Raise NotApplicable if the engine does not support a need, and UsageError if its packages are missing."""
        sets = {name: engine.supports for name, engine in ENGINES.items() if name != "auto"}
        supports = self.supports
        if self.name == "auto":
            supports = sets["torch"] if needs <= sets["torch"] else sets["transformers"]
        capabilities.check_engine(self.name, supports, needs, sets)
        if self.modules and not any(find_spec(name) for name in self.modules) and not os.environ.get(self.variable):
            raise UsageError(
                f"engine={self.name} requires the package {' or '.join(self.modules)}, which is not installed; run: {self.install}"
            )

    def sizes(self, weights: WeightSizes | None, bits: float) -> WeightSizes | None:
        """Return the sizes of weights of `bits` bits each in the engine's format."""
        if weights is None or self.weights is None:
            return weights
        layers, head = (size / bits for size in self.formats[self.weights])
        scaled = [tuple(round(size * layers) for size in sizes) for sizes in (weights.layers, weights.attention, weights.mlp)]
        return WeightSizes(round(weights.head * head), scaled[0], weights.patch, *scaled[1:])


class Torch(Engine):
    """Our own decode loop on torch: drafts, early exit, compiled steps."""

    supports = ALL - {Need.BEAMS, Need.STOP_STRINGS, Need.GENERATE_ARGUMENTS}


class Transformers(Engine):
    """The `generate` method of transformers."""

    supports = ALL - {Need.DRAFTS, Need.EARLY_EXIT, Need.COMPILATION}


_FLOATS: Mapping[str, tuple[float, float]] = {"f32": (32, 32), "f16": (16, 16)}
_PLAIN = ALL - {
    *(Need.BEAMS, Need.STOP_STRINGS, Need.GENERATE_ARGUMENTS, Need.COMPILATION, Need.DRAFTS, Need.EARLY_EXIT),
    *(Need.HALF_LAYERS, Need.PATCHES, Need.QUANTIZATION, Need.DEVICE_MAP),
}


class LlamaCpp(Engine):
    """llama.cpp, which decodes GGUF files."""

    supports = _PLAIN
    formats: ClassVar[Mapping[str, tuple[float, float]]] = {**_FLOATS, "bf16": (16, 16), "q8_0": (8.5, 8.5), "q4_0": (4.5, 8.5)}
    modules = ("llama_cpp",)
    install = "pip install 'ulskip[llama-cpp]'"


class OpenVino(Engine):
    """OpenVINO."""

    supports = _PLAIN
    formats: ClassVar[Mapping[str, tuple[float, float]]] = {**_FLOATS, "int8": (8, 8), "int4": (4.25, 8)}
    modules = ("openvino",)
    install = "pip install 'ulskip[openvino]'"


class Vllm(Engine):
    """vLLM, in which prompts and all decode steps run through the same layers."""

    supports = _PLAIN - {Need.SAMPLING, Need.LATENCY, Need.STAGES, Need.FULL_PROMPT}
    formats: ClassVar[Mapping[str, tuple[float, float]]] = {**_FLOATS, "bf16": (16, 16)}
    modules = ("vllm",)
    install = "make vllm, and set ULSKIP_VLLM_PYTHON=.venv-vllm/bin/python"
    variable = "ULSKIP_VLLM_PYTHON"


ENGINES: Mapping[str, type[Engine]] = {
    "auto": Engine,
    "torch": Torch,
    "transformers": Transformers,
    "llama_cpp": LlamaCpp,
    "openvino": OpenVino,
    "vllm": Vllm,
}


def engine_named(name: str) -> Engine:
    """Return the engine of a name with the model's own format of weights."""
    return ENGINES[require_choice("engine", name, ENGINES)](name=name)
