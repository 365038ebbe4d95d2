"""ulskip makes LLM inference faster by skipping layers, and measures the cost in quality.

The public functions are defined in `ulskip_cli.api`; importing them imports no torch.
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ulskip_cli.api import (
        Answer,
        AnswerPair,
        compare,
        evaluate,
        generate,
        kept_layers,
        shallow_view,
    )
    from ulskip_cli.core.environment import __version__

__all__ = [
    "Answer",
    "AnswerPair",
    "__version__",
    "compare",
    "evaluate",
    "generate",
    "kept_layers",
    "shallow_view",
]

# transformers imports them, and they speak of kernels for other devices
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that the command handles signals as soon as it
    starts.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ulskip_cli import api
    from ulskip_cli.core import environment

    return getattr(environment if name == "__version__" else api, name)
