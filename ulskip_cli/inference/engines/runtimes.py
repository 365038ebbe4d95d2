"""The engines of other libraries by name; a library is imported when its engine is used."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import psutil
from transformers import PreTrainedModel

from ulskip_cli.core.engines import Engine
from ulskip_cli.core.errors import RunError
from ulskip_cli.inference.engines.base import LibraryEngine
from ulskip_cli.inference.engines.runtime import RuntimeEngine
from ulskip_cli.inference.shallow_view import StageView


def make_library_engine(engine: Engine, prompt_model: PreTrainedModel, stages: Sequence[StageView]) -> LibraryEngine:
    """Return the engine `engine.name` for the views of the stages; models are loaded when it gets its first batch.

    Raises RunError if the copies of the weights do not fit into memory.
    """
    runtime: Any
    _check_memory(engine, [prompt_model, *(stage.view for stage in stages)])
    if engine.name == "vllm":
        from ulskip_cli.inference.engines.vllm import VllmEngine

        return VllmEngine(prompt_model, stages, engine.weights)
    if engine.name == "llama_cpp":
        from ulskip_cli.inference.engines.llama_cpp import LlamaCppRuntime as runtime
    else:
        from ulskip_cli.inference.engines.openvino import OpenVinoRuntime as runtime
    return RuntimeEngine(engine.name, stages, partial(runtime, prompt_model, stages, engine.weights))


def _check_memory(engine: Engine, models: Sequence[PreTrainedModel]) -> None:
    """Raise RunError if the free memory cannot hold a copy of each model in the engine's format."""
    needed = 0.0
    for model in {id(model): model for model in models}.values():
        bits = engine.formats[engine.weights][0] if engine.weights else 8 * model.dtype.itemsize
        needed += sum(parameter.numel() for parameter in model.parameters()) * bits / 8
    free = psutil.virtual_memory().available
    if needed > free:
        raise RunError(
            f"out of memory: engine={engine.name} needs {needed / 2**30:.1f} GiB for its copies of the weights, "
            f"{free / 2**30:.1f} GiB are free; set engine.weights to a smaller format, or use engine=torch or a smaller model"
        )
