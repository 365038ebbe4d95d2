import json

import pytest

from ulskip_cli.engines.base import BatchOutput, DraftStats, ExitStats
from ulskip_cli.experiments.batch_checkpoints import BatchCheckpoints

ORIGIN = {"code": "a", "threads": 2}
ORDER = [2, 0, 1, 3]


def output(*tokens, drafts=None, exits=None):
    return BatchOutput(
        [list(one) for one in tokens],
        [False] * len(tokens),
        9,
        0.1,
        0.2,
        0.3,
        10,
        5,
        drafts=drafts,
        exits=exits,
    )


@pytest.fixture
def path(tmp_path):
    partial = BatchCheckpoints(tmp_path / "a.partial.jsonl", ORIGIN)
    assert partial.batches(ORDER) == []
    partial.add([2, 0], output([1, 2], [3]), 2, 100)
    partial.add(
        [1], output([4], drafts=DraftStats(1, 2, 3, 4), exits=ExitStats({3: 2}, 0.5)), 1, 200
    )
    return tmp_path / "a.partial.jsonl"


def test_finished_batches_are_read_back(path):
    one, two = BatchCheckpoints(path, ORIGIN).batches(ORDER)
    assert (one.positions, one.output, one.batch_size) == ([2, 0], output([1, 2], [3]), 2)
    assert two.output.exits == ExitStats({3: 2}, 0.5)
    assert (two.output.drafts, two.batch_size, two.peak_memory_bytes) == (
        DraftStats(1, 2, 3, 4),
        1,
        200,
    )


def test_a_batch_that_was_cut_off_is_dropped_and_the_file_goes_on_whole(path):
    path.write_bytes(path.read_bytes()[:-20])
    again = BatchCheckpoints(path, ORIGIN)
    assert [batch.positions for batch in again.batches(ORDER)] == [[2, 0]]
    again.add([1, 3], output([7], [8]), 2, 300)
    assert [batch.positions for batch in BatchCheckpoints(path, ORIGIN).batches(ORDER)] == [
        [2, 0],
        [1, 3],
    ]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_batches_of_another_machine_or_order_are_dropped(path):
    assert len(BatchCheckpoints(path, ORIGIN).batches([2, 0, 3, 1])) == 1
    other = BatchCheckpoints(path, {**ORIGIN, "threads": 1})
    assert other.batches(ORDER) == []
    other.add([2, 0], output([1, 2], [3]), 2, 100)
    assert len(BatchCheckpoints(path, {**ORIGIN, "threads": 1}).batches(ORDER)) == 1


def test_seconds_of_all_attempts_add_up(path):
    text = path.read_text().splitlines()
    last = {**json.loads(text[-1]), "elapsed_seconds": 100.0}
    path.write_text("\n".join([*text[:-1], json.dumps(last)]) + "\n")
    again = BatchCheckpoints(path, ORIGIN)
    again.batches(ORDER)
    assert again.elapsed_seconds >= 100


def test_nothing_is_left_of_a_run_that_is_done(path):
    partial = BatchCheckpoints(path, ORIGIN)
    partial.remove()
    partial.remove()
    assert not path.exists()
    assert partial.batches(ORDER) == []


def test_lines_of_another_shape_are_dropped(path):
    lines = path.read_text().splitlines()
    other = json.loads(lines[2])
    del other["output"]["drafts"]
    path.write_text("\n".join([*lines[:2], json.dumps(other)]) + "\n")
    assert [batch.positions for batch in BatchCheckpoints(path, ORIGIN).batches(ORDER)] == [[2, 0]]
