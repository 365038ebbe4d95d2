"""ulskip: faster LLM inference by skipping layers, with the price of the speed measured.

`schedule`, `shallow_view`, `generate` and `evaluate` are at hand here and come from `ulskip_cli.api`.
"""

from typing import Any

__version__ = "0.1.0"
_API = ("schedule", "shallow_view", "generate", "evaluate")


def __getattr__(name: str) -> Any:
    """The API's functions, imported when they are asked for."""
    if name in _API:
        from importlib import import_module

        if name == "schedule":  # the module of that name, which can be called
            return import_module("ulskip_cli.schedule")
        return getattr(import_module("ulskip_cli.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is here, the API included."""
    return sorted([*globals(), *_API])
