"""`ulskip tune`: find the best configuration for a wanted speedup, or the fastest for a wanted
quality, on held-out examples.

Start with `search.py`, which has the steps. `request.py` divides the examples and makes the
candidates without torch.
"""
