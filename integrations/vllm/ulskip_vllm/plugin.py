"""The plug-in of the entry point group `vllm.general_plugins`, which every process of vLLM
loads.
"""

from vllm import ModelRegistry

from ulskip_vllm import MODELS


def register() -> None:
    """Register the models without importing them, because an import can initialize the GPU too
    early.
    """
    for name in MODELS.values():
        ModelRegistry.register_model(name, f"ulskip_vllm.kept_layers_model:{name}")
