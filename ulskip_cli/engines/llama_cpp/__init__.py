"""The engine `llama_cpp`: views as GGUF files, decoded by llama.cpp on the CPU."""

from typing import TYPE_CHECKING, ClassVar

from ulskip_cli.core.engines import FLOATS, Engine
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.gguf_header import why_unsupported_by_gguf

if TYPE_CHECKING:
    from ulskip_cli.engines.base import Session


class LlamaCpp(Engine):
    """llama.cpp, which decodes GGUF files."""

    formats: ClassVar = {**FLOATS, "bf16": (16, 16), "q8_0": (8.5, 8.5), "q4_0": (4.5, 8.5)}
    modules = ("llama_cpp",)
    install = "pip install '.[llama-cpp]' in the folder of ulskip"

    def session(self) -> "type[Session]":
        """Return the class of the sessions."""
        from ulskip_cli.engines.llama_cpp.llama_session import LlamaCppSession

        return LlamaCppSession

    @classmethod
    def check_model(cls, config: JsonObject) -> None:
        """Raise UsageError if GGUF does not support the model of a config.json."""
        if reason := why_unsupported_by_gguf(config):
            raise UsageError(
                f"engine=llama_cpp does not support this model ({reason}); use engine=torch"
            )
