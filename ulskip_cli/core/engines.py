"""The engines and what they support. Imports no torch and none of the engines' packages."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from ulskip_cli.core.errors import UsageError


@dataclass(frozen=True)
class EngineSpec:
    """The properties of an engine."""

    weights: tuple[str, ...] = ()  # formats for engine.weights; the engines of torch use model.dtype and model.quantization
    modules: tuple[str, ...] = ()  # packages, of which one must be installed
    extra: str = ""  # of ulskip that installs them

    @property
    def is_runtime(self) -> bool:
        """True if another library than torch decodes, with a copy of the weights."""
        return bool(self.modules)


ENGINES = {
    "auto": EngineSpec(),
    "torch": EngineSpec(),
    "transformers": EngineSpec(),
    "llama_cpp": EngineSpec(("f32", "f16", "bf16", "q8_0", "q4_0"), ("llama_cpp", "xllamacpp"), "llama-cpp"),
    "openvino": EngineSpec(("f32", "f16", "int8", "int4"), ("openvino",), "openvino"),
}


def check_installed(engine: str) -> None:
    """Raise UsageError if the packages of an engine are missing."""
    spec = ENGINES[engine]
    missing: Sequence[str] = spec.modules if not any(find_spec(name) for name in spec.modules) else ()
    if missing:
        raise UsageError(
            f"engine={engine} requires the package {' or '.join(missing)}, which is not installed; "
            f"run: pip install 'ulskip[{spec.extra}]'"
        )
