import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.example import Example, from_rows


def test_rows_become_examples_in_order():
    rows = [{"id": 7, "q": "a", "a": "b"}, {"q": "c", "a": "d"}]
    assert from_rows(rows, "q", "a", "x.jsonl") == [Example("7", "a", "b"), Example("1", "c", "d")]


@pytest.mark.parametrize("row", [{"q": "a"}, {"q": "a", "a": 5}, {"q": " ", "a": "b"}, {}])
def test_a_row_without_both_texts_is_named(row):
    with pytest.raises(UsageError, match=r"x\.jsonl, row 2: expected texts under q and a, got keys"):
        from_rows([{"q": "a", "a": "b"}, row], "q", "a", "x.jsonl")


def test_nothing_is_refused():
    with pytest.raises(UsageError, match="has no rows"):
        from_rows([], "q", "a", "x.jsonl")
