"""ulskip: faster LLM inference by skipping layers, with the price of the speed measured."""

__version__ = "0.1.0"
