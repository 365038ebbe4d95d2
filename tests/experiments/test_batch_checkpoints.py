import time

import pytest

from ulskip_cli.engines.base import BatchOutput, DraftStats, ExitStats
from ulskip_cli.experiments.evaluate import BatchCheckpoints

ORIGIN = {"code": "a", "threads": 2}
ORDER = [2, 0, 1, 3]


FIRST = BatchOutput([[1, 2], [3]], [False, False], 9, 0.1, 0.2, 0.3, 10, 5)
SECOND = BatchOutput(
    *([[4]], [True], 9, 0.1, 0.2, 0.3, 10, 5),
    drafts=DraftStats(1, 2, 3, 4),
    exits=ExitStats({3: 2}, 0.5),
)


def resumed(path, order=ORDER, **origin):
    """The batches of a run that begins now, after an earlier attempt."""
    batches = BatchCheckpoints(path, ORIGIN | origin, time.monotonic())
    batches.resume(order)
    return batches


def read(path, order=ORDER, **origin):
    return resumed(path, order, **origin).finished


@pytest.fixture
def path(tmp_path):
    partial = resumed(tmp_path / "a.partial.jsonl")
    assert partial.finished == []
    partial.add([2, 0], FIRST, 2, 100)
    partial.add([1], SECOND, 1, 200)
    return tmp_path / "a.partial.jsonl"


def test_finished_batches_are_read_back_but_for_one_that_was_cut_off(path):
    stored = [(batch.output, batch.batch_size, batch.peak_memory_bytes) for batch in read(path)]
    assert stored == [(FIRST, 2, 100), (SECOND, 1, 200)]
    path.write_bytes(path.read_bytes()[:-20])
    again = resumed(path)
    assert [batch.positions for batch in again.finished] == [[2, 0]]
    again.add([1, 3], FIRST, 2, 300)
    assert [batch.positions for batch in read(path)] == [[2, 0], [1, 3]]


def test_batches_of_another_machine_order_or_shape_are_dropped(path):
    assert len(read(path, [2, 0, 3, 1])) == 1
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1].replace("token_ids", "tokens")]) + "\n")
    assert len(read(path)) == 1
    assert read(path, threads=1) == []


def test_seconds_of_all_attempts_add_up_until_the_run_is_done(path):
    path.write_text(path.read_text().replace('"elapsed_seconds":', '"elapsed_seconds":10'))
    again = resumed(path)
    assert again.elapsed_seconds >= 100
    again.remove()
    assert not path.exists() and read(path) == []
