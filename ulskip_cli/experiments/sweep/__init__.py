"""Run a sweep: a grid of points, each run once by one of many workers, resumable after any
interruption.

Start with `run.py`. `grid.py` expands overrides into points, `jobs.py` names, checks and orders
them and reads which are finished, `launchers.py` starts workers on this machine, on Slurm or on
Ray.
"""
