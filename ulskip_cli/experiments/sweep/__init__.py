"""Run a sweep: a grid of points, each run once by one of many workers, resumable after any
interruption.

Start with `run.py`. `grid.py` expands overrides into points, `jobs.py` names and checks points,
`status.py` reads which points are finished, `worker.py` runs the others, `launchers/` start workers
on this machine, on Slurm or on Ray.
"""
