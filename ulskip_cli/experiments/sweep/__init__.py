"""Run a sweep: a grid of points, each run once by one of many workers, resumable after any
interruption.

Start with `jobs.py`, which names, checks and orders the points, reads which are finished, and runs
the others. `grid.py` expands overrides into points, `launchers.py` starts workers on this machine,
on Slurm or on Ray.
"""
