"""Decoding: the engines, the loop that they share, and the decoder that chooses one of them. The
sessions require torch.

Start with `decoder.py` (chooses an engine, and generates), then `base.py` (the interface of
engines), `loop.py` (the decode loop) and `library.py` (code for engines of other libraries).
`torch/` is the default engine, `speculative.py` and `early_exit.py` are methods on torch, and
`transformers/` supports every option. An engine class is in the `__init__.py` of its package and
imports no torch, because configurations contain it. May import `inference` and what `inference` may
import.
"""
