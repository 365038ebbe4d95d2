import pytest

from ulskip_cli.core import progress
from ulskip_cli.core.progress import NullProgress, throttled


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


def test_drawing_is_throttled_but_the_end_is_always_drawn(clock):
    drawn = []
    tell = throttled(4, lambda done, note: drawn.append((done, note)))
    for seconds, done in ((0.0, 1), (0.1, 2), (0.3, 3), (0.31, 4)):
        clock(seconds)
        tell(done, "x")
    assert drawn == [(1, "x"), (3, "x"), (4, "x")]
