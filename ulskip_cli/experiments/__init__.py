"""Run single points, sweeps and benchmarks, and store their rows in results/.

Start with `point.py` (what follows from a configuration without torch) and `runner.py` (one point
from there to its row), then `record.py` (the row) and `results.py` (the files of a results folder).
`grid.py` expands the overrides of a sweep into configurations. `ledger.py` makes jobs of them and
tells which have a row already, so that an interrupted sweep continues. `sweep.py` runs the others,
and `launchers.py` starts workers on this machine, on Slurm or on Ray.
"""
