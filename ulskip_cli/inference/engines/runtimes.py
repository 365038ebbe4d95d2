"""The runtimes of other libraries by engine name; a library is imported when its engine is used."""

from collections.abc import Callable
from functools import partial
from importlib import import_module

from transformers import PreTrainedModel

from ulskip_cli.core.config_schema import EngineConfig
from ulskip_cli.inference.engines.runtime import Runtime
from ulskip_cli.inference.shallow_view import StageView

_CLASSES = {"llama_cpp": "LlamaCppRuntime", "openvino": "OpenVinoRuntime"}


def runtime_maker(engine: EngineConfig, prompt_model: PreTrainedModel, stage: StageView) -> Callable[[int, int], Runtime]:
    """Return the function that loads a view for a number of sequences of a length."""
    module = import_module(f"ulskip_cli.inference.engines.{engine.name}")
    return partial(getattr(module, _CLASSES[engine.name]), prompt_model, stage, engine.weights)
