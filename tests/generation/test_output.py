from ulskip_cli.generation.output import BatchOutput, Drafts


def test_counts():
    output = BatchOutput([[1, 2, 3], [4], []], [False] * 3, 9, 0.5, 1.0, 2.0, 0, 0)
    assert (output.generated_tokens, output.decoded_tokens, output.total_seconds) == (4, 2, 3.0)
    assert output.steps == 2


def test_drafts_of_batches_add_up():
    assert Drafts(1, 3, 8, 5) + Drafts(2, 4, 8, 3) == Drafts(3, 7, 16, 8)
