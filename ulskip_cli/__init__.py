"""ulskip: faster LLM inference by skipping layers, with the price of the speed measured.

The public functions are defined in `ulskip_cli.api`; importing them imports no torch.
"""

from ulskip_cli.api import Answer, evaluate, generate, kept_layers, shallow_view
from ulskip_cli.core.environment import __version__

__all__ = ["Answer", "__version__", "evaluate", "generate", "kept_layers", "shallow_view"]
