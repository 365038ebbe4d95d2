import os

from ulskip_cli.experiments.sweep.launchers.serve import thread_environment, threads_per_worker


def test_cores_are_divided_among_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [threads_per_worker(None, workers) for workers in (1, 2, 3, 16)] == [None, 4, 2, 1]
    assert threads_per_worker(3, 2) == 3


def test_openmp_is_told():
    assert thread_environment(None) == {}
    assert thread_environment(2)["OMP_NUM_THREADS"] == "2"
