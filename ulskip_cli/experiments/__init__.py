"""Run single points, sweeps and benchmarks, and store their rows in results/.

Start with `preflight.py` (what follows from a configuration without torch) and `runner.py` (one
point from there to its row), then `record.py` (the row), `results.py` (the files of a results
folder) and `sweep/` (many points, resumable).
"""
