from ulskip_cli.engines.base import BatchOutput, DraftStats


def test_counts():
    output = BatchOutput([[1, 2, 3], [4], []], [False] * 3, 9, 0.5, 1.0, 2.0, 0, 0)
    assert (output.generated_tokens, output.decoded_tokens, output.total_seconds) == (4, 2, 3.0)
    assert output.steps == 2


def test_draft_counts_of_batches_can_be_added():
    assert DraftStats(1, 3, 8, 5) + DraftStats(2, 4, 8, 3) == DraftStats(3, 7, 16, 8)
