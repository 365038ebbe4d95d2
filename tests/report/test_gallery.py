import threading

import pytest
from report_rows import small_sweep

from ulskip_cli.core.errors import StorageError
from ulskip_cli.report import gallery
from ulskip_cli.report.gallery import Beside, Wall
from ulskip_cli.report.groups import grouped


@pytest.mark.parametrize("forks", [True, False])
def test_a_wall_is_hung_beside_or_when_it_is_asked_for(tmp_path, monkeypatch, forks):
    monkeypatch.setattr(gallery, "_may_fork", lambda: forks)
    with Beside(Wall(grouped(small_sweep()), 0.9, tmp_path, page=True)) as beside:
        found = beside.pictures()
    assert [one.name for one in found] == ["quality", "targets", "throughput", "layers"]
    assert all(file.is_file() for one in found for file in one.files)
    assert all(one.svg.startswith("<svg ") for one in found)


def test_a_failure_beside_is_told_here(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "_may_fork", lambda: True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), Beside(Wall(grouped(small_sweep()), 0.9, tmp_path / "file" / "x", page=False)) as beside:
        beside.pictures()


def test_nothing_to_draw_takes_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "_may_fork", lambda: pytest.fail("asked"))
    with Beside(Wall((), 0.9, tmp_path, page=False)) as beside:
        assert beside.pictures() == []


def test_a_process_with_threads_does_not_fork(monkeypatch):
    monkeypatch.setattr(gallery.sys, "platform", "linux")
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert not gallery._may_fork()
    finally:
        done.set()
        thread.join()
