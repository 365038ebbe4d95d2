"""Loading a model, viewing some of its layers as a model, decoding with it and scoring it. Needs torch.

May import `strategies`, `tasks` and `core`. Start with `shallow_view.py` (a schedule is a shallower model that shares the
weights), then `decoder.py` (picks an engine and times the phases) and `engines/` (the decode loops).
"""
