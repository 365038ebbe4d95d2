"""The runtimes of other libraries by engine name; a library is imported when its engine is used."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from ulskip_cli.core.config_schema import EngineConfig
from ulskip_cli.inference.engines.runtime import Runtime
from ulskip_cli.inference.shallow_view import StageView


def runtime_maker(
    engine: EngineConfig, prompt_model: PreTrainedModel, stages: Sequence[StageView]
) -> Callable[[int, int], Runtime]:
    """Return the function that loads the views of the stages for a number of sequences of a length."""
    runtime: Any
    if engine.name == "llama_cpp":
        from ulskip_cli.inference.engines.llama_cpp import LlamaCppRuntime as runtime
    else:
        from ulskip_cli.inference.engines.openvino import OpenVinoRuntime as runtime
    return partial(runtime, prompt_model, stages, engine.weights)
