"""Decoding: the engines, the loop that they share, and the decoder that chooses one of them. The
sessions require torch.

Start with `decoder.py` (chooses an engine, and generates), then `base.py` (the interface of
engines), `loop.py` (the decode loop) and `library.py` (what engines of other libraries share).
`torch/` is the engine by default, `speculative.py` and `early_exit.py` are methods on torch, and
`transformers/` supports every option. The class of an engine is in the `__init__.py` of its package
and imports no torch, because configurations hold it. May import `inference` and what `inference`
may import.
"""
