"""Decoding: the engines, the loop that they share, and the decoder that chooses one of them. The
sessions require torch.

Start with `decoder.py` (chooses an engine, and generates), then `base.py` (the interface of
engines, and code for those of other libraries) and `loop.py` (the decode loop, with drafts).
`torch/` is the default engine, which also runs early exit, and `transformers/` supports beam
search. An engine class is in the `__init__.py` of its package and imports no torch, because
configurations contain it. May import `inference` and what `inference` may import.
"""
