import pytest

from ulskip_cli.core import progress
from ulskip_cli.core.progress import NullProgress, Stopwatch, throttled


def test_silence_takes_any_report():
    tell = NullProgress().phase("x", 3)
    assert tell(2) is None
    assert tell(3, "5 tok/s") is None


@pytest.fixture
def clock(monkeypatch):
    """Set what time it is."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_a_phase_lasts_until_the_next_begins(clock):
    clock(10.0)
    watch = Stopwatch("start", began=8.0)
    watch.phase("a", 3)
    clock(11.0)
    watch.phase("b", 0)
    clock(15.0)
    watch.phase("a", 3)
    clock(15.5)
    watch.stop()
    assert watch.seconds == {"start": 2.0, "a": 1.5, "b": 4.0}


def test_who_watches_is_told(clock):
    told = []

    class Watcher:
        def phase(self, label, total):
            told.append((label, total))
            return lambda done, note="": told.append((done, note))

    watch = Stopwatch("start")
    watch.inner = Watcher()
    watch.phase("a", 3)(2, "x")
    assert told == [("a", 3), (2, "x")]


def test_drawing_is_throttled_but_the_end_is_always_drawn(clock):
    drawn = []
    tell = throttled(4, lambda done, note: drawn.append((done, note)))
    for seconds, done in ((0.0, 1), (0.1, 2), (0.3, 3), (0.31, 4)):
        clock(seconds)
        tell(done, "x")
    assert drawn == [(1, "x"), (3, "x"), (4, "x")]
