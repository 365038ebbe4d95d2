"""Run single points and sweeps of an experiment, and store their results in results/.

May import `inference`, `strategies`, `tasks` and `core`. Start with `runner.py` (one point from its
config to its row), then `record.py` (the row), `results.py` (the files of a results folder) and
`sweep/` (many points, resumable).
"""
