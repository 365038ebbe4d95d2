"""ulskip makes LLM inference faster by skipping layers, and measures the cost in quality.

The public functions are defined in `ulskip_cli.api`; importing them imports no torch.
"""

from ulskip_cli.api import Answer, evaluate, generate, kept_layers, shallow_view
from ulskip_cli.core.environment import __version__

__all__ = ["Answer", "__version__", "evaluate", "generate", "kept_layers", "shallow_view"]
