"""A small run of benchmarks/soak.py, and its comparison of what runs wrote."""

import random
import signal

import pytest
import soak


@pytest.mark.slow
@pytest.mark.long
def test_an_export_that_is_killed_ends_with_the_same_files(model_folder, tmp_path):
    place = soak.Place("export", model_folder)
    assert list(soak.soak(place, tmp_path, [signal.SIGKILL], random.Random(1))) == []


def test_lost_doubled_and_changed_rows_are_named():
    row = {"id": "a", "bleu": 1.0, "decode_seconds": 1.0, "warnings": []}
    again = {**row, "decode_seconds": 2.0, "warnings": ["busy"]}
    assert soak.row_differences([row], [again]) == []
    assert soak.row_differences([row], []) == ["a is lost"]
    assert soak.row_differences([], [row]) == ["a is only in the interrupted sweep"]
    assert soak.row_differences([row], [row, {**row, "bleu": 2.0}]) == [
        "a has 2 rows",
        "a differs in bleu",
    ]


def test_missing_changed_and_left_over_files_are_named(tmp_path):
    for folder, files in (
        ("whole", {"a": "1", "b": "2 whole"}),
        ("own", {"a": "3", ".a.0.tmp": ""}),
    ):
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    found = soak.differences("export", tmp_path / "whole", tmp_path / "own")
    assert found == ["b is missing", ".a.0.tmp is left over", "a differs"]


def test_each_command_gets_its_share_of_each_signal():
    shares = soak.spread(4, soak.COMMANDS, random.Random(0))
    assert [len(signals) for signals in shares.values()] == [3, 3, 3, 3]
    assert sorted(one for signals in shares.values() for one in signals) == sorted(
        [*soak.SIGNALS] * 4
    )
    assert all(signal.SIGKILL in signals for signals in shares.values())
