"""`ulskip tune`: find the fastest or best configuration for a wish, on held-out examples.

Start with `search.py`, which has the steps. `request.py` divides the examples and makes the
candidates without torch.
"""
