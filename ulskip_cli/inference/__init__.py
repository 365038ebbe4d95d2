"""Loading, layer skipping, decoding and teacher-forced scoring of models. Requires torch.

Start with `shallow_view.py` (a model of some layers that shares the weights), then `decoder.py` (chooses an engine and times
the phases) and `engines/` (the decode loops). May import `strategies`, `tasks` and `core`.
"""
