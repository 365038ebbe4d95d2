import os

from ulskip_cli.launchers.serve import thread_variables, threads_of


def test_cores_are_divided_among_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [threads_of(None, workers) for workers in (1, 2, 3, 16)] == [None, 4, 2, 1]
    assert threads_of(3, 2) == 3


def test_openmp_is_told():
    assert thread_variables(None) == {}
    assert thread_variables(2)["OMP_NUM_THREADS"] == "2"
