"""The engine `vllm`: each view is an exported checkpoint, decoded by vLLM in a process of its
own.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.engines import FLOATS, PLAIN, Engine

if TYPE_CHECKING:
    from ulskip_cli.engines.base import Session

PYTHON = "ULSKIP_VLLM_PYTHON"  # environment variable with the Python that has vLLM


class Vllm(Engine):
    """vLLM, in which prompts and all decode steps run through the same layers."""

    supports: ClassVar[frozenset[Need]] = PLAIN - {
        Need.LOOK_UPS,
        Need.SAMPLING,
        Need.STAGES,
        Need.FULL_PROMPT,
    }
    formats: ClassVar[Mapping[str, tuple[float, float]]] = {**FLOATS, "bf16": (16, 16)}
    modules = ("vllm",)
    install = f"make vllm, and set {PYTHON}=.venv-vllm/bin/python"
    build_variable = PYTHON

    def session(self) -> "type[Session]":
        """Return the class of the sessions."""
        from ulskip_engine_vllm.session import VllmSession

        return VllmSession
