"""Corrections of the hidden states behind skipped layers. They act in decode steps only, and the
model stays unchanged.

`core/correction.py` is the interface. This package imports only `core`. `inference/patch_fit.py`
computes patches, and `training/adapter_loss.py` trains skip adapters.
"""
