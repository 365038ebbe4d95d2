from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelMetadata, WeightSizes
from ulskip_cli.strategies.plan import make_plan, memory_plan, parse_bytes

METADATA = ModelMetadata(
    num_layers=12, kv_bytes_per_layer=100, weights=WeightSizes(300, (100,) * 12)
)
SIZES = replace(
    METADATA, total_bytes=10_000, workspace_bytes_per_token=10, workspace_bytes_per_sequence=50
)
LONG = ["speed.prompt_tokens=10", "decoding.max_new_tokens=30"]


def planned(config, metadata):
    return memory_plan(config, metadata, make_plan(config, metadata))


def test_the_largest_batch_is_counted_by_hand():
    memory = planned(compose(["ratio=2", "memory_budget=100kB", *LONG]), SIZES)
    assert memory.max_batch == 90_000 // (40 * 6 * 100 + 50)
    assert memory.full_max_batch == 90_000 // (40 * 1200 + 50)
    short = ["speed.prompt_tokens=10", "decoding.max_new_tokens=1"]
    memory = planned(compose(["ratio=2", "memory_budget=100kB", *short]), SIZES)
    assert memory.max_batch == 90_000 // (
        10 * (12 * 100 + 10) + 50
    )  # all layers have keys of a prompt


@given(
    st.integers(20_000, 10**7),
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from(["all", "kept"]),
)
def test_skipping_never_makes_the_largest_batch_smaller(budget, prompt, new, prompt_layers):
    overrides = [
        f"memory_budget={budget}",
        f"speed.prompt_tokens={prompt}",
        f"decoding.max_new_tokens={new}",
    ]
    try:
        memory = planned(compose([*overrides, f"prompt_layers={prompt_layers}", "ratio=3"]), SIZES)
    except UsageError as error:
        assert "memory_budget" in str(error)
        return
    assert memory.max_batch >= max(1, memory.full_max_batch)


def test_a_budget_that_is_too_small_or_unknowable_is_refused():
    with pytest.raises(UsageError, match="memory_budget"):
        planned(compose(["memory_budget=10kB"]), SIZES)
    with pytest.raises(UsageError, match="memory_budget"):
        planned(compose(["memory_budget=10GB"]), METADATA)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("24GiB", 24 * 2**30), ("16 gb", 16 * 10**9), ("1.5k", 1500), ("12", 12)],
)
def test_sizes_as_people_write_them(text, expected):
    assert parse_bytes(text) == expected
    for other in (f"-{text}", f"{text} of it", "much", ""):
        with pytest.raises(UsageError, match="memory_budget="):
            parse_bytes(other)
