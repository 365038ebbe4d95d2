from ulskip_cli.generation.output import BatchOutput


def test_counts():
    output = BatchOutput([[1, 2, 3], [4], []], [False] * 3, 9, 0.5, 1.0, 2.0, 0, 0)
    assert (output.generated_tokens, output.decoded_tokens, output.total_seconds) == (4, 2, 3.0)
