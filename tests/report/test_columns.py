import pytest
from report_rows import sweep_row

from ulskip_cli.report.columns import paired_tokens_per_second


def test_both_sides_of_timed_pairs_have_tokens_per_second():
    sides = {"full": {"decode_seconds": [2.0, 2.0]}, "strategy": {"decode_seconds": [1.0, 1.0]}}
    row = sweep_row(time_per_output_token_seconds=0.01, timed_batch_size=4, pairs=sides)
    assert paired_tokens_per_second(row) == pytest.approx(400)
    assert paired_tokens_per_second(row, "full") == pytest.approx(200)


def test_a_schedule_that_was_timed_alone_has_its_own_side_only():
    row = sweep_row(time_per_output_token_seconds=0.01, timed_batch_size=1, pairs={"strategy": {"decode_seconds": [1.0]}})
    assert paired_tokens_per_second(row) == pytest.approx(100)
    assert paired_tokens_per_second(row, "full") is None


def test_sequences_that_stopped_at_eos_have_no_tokens_after_it():
    """Of two sequences one stopped after 10 of 100 steps, with 0.01 seconds for each step of both."""
    sides = {
        "full": {"decode_seconds": [4.0, 2.0, 2.0], "decoded_tokens": [110, 110, 100]},
        "strategy": {"decode_seconds": [1.0, 1.0, 0.5], "decoded_tokens": [110, 100, 60]},
    }
    for stops in ({"draft_tokens": 2}, {"exit_depths": {"3": 10}}):
        row = sweep_row(batch=2, time_per_output_token_seconds=0.01, timed_batch_size=2, pairs=sides, **stops)
        assert paired_tokens_per_second(row) == pytest.approx(110)
        assert paired_tokens_per_second(row, "full") == pytest.approx(50)
