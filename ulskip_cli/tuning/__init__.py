"""`ulskip tune`: find what to use for a wanted speedup or a wanted quality, on held-out examples.

It is a sweep whose later points depend on the rows of earlier ones: `request.py` divides the
examples and makes the points, `search.py` runs them and judges the last one.
"""
