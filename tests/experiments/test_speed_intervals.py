from ulskip_cli.experiments.speed import TimedPairs
from ulskip_cli.inference.engines.base import BatchOutput


def outputs(seconds):
    return [BatchOutput([[1, 2]], [True], 3, 0.5, 1.0, decode, 8, 4) for decode in seconds]


def test_a_speedup_has_the_interval_of_its_pairs_and_the_coverage():
    timing = TimedPairs(outputs([4, 9, 6, 5, 8, 7]), outputs([2, 3, 3, 5, 2, 1]), batch_size=1).timing()
    assert (timing.measured_speedup_low, timing.measured_speedup_high) == (1.0, 7.0)
    assert timing.speedup_interval_coverage == 1 - 2 / 2**6


def test_a_schedule_that_was_timed_alone_has_no_interval():
    assert TimedPairs([], outputs([2, 3]), batch_size=1).timing().speedup_interval_coverage is None
