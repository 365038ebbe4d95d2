"""Strategies, which choose the layers of a decode step. They import no torch.

`core/strategy.py` is the interface. `static.py` has the smallest strategies. `plan.py` turns a
configuration and a model's metadata into a `Plan`, which is a `Schedule` with a forecast. This
package imports only `core`.
"""
