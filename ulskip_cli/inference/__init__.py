"""Loading, layer skipping, caches and teacher forcing of models. Requires torch.

Start with `shallow_view.py` (a model of some layers that shares the weights). May import
`strategies`, `tasks` and `core`.
"""
