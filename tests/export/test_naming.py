import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.errors import UsageError
from ulskip_cli.export.naming import renamed, shards

OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


@given(st.data())
def test_kept_layers_are_numbered_anew_and_the_rest_is_dropped(data):
    num_layers = data.draw(st.integers(1, 12))
    kept = sorted(data.draw(st.sets(st.integers(0, num_layers - 1), min_size=1)))
    names = [f"model.layers.{i}.{part}" for i in range(num_layers) for part in ("mlp.experts.7.w", "norm.weight")]
    chosen = renamed([*names, *OUTSIDE], num_layers, kept)
    assert set(OUTSIDE) <= chosen.keys()
    for new, old in enumerate(kept):
        assert chosen[f"model.layers.{old}.mlp.experts.7.w"] == f"model.layers.{new}.mlp.experts.7.w"
    assert len(chosen) == len(OUTSIDE) + 2 * len(kept)
    assert len(set(chosen.values())) == len(chosen)


def test_layers_beyond_the_model_and_other_stacks_are_left():
    names = [*(f"model.layers.{i}.w" for i in range(4)), "vision.blocks.0.w", "vision.blocks.1.w"]
    assert renamed(names, 3, (0, 2)) == {
        "model.layers.0.w": "model.layers.0.w", "model.layers.2.w": "model.layers.1.w",
        "vision.blocks.0.w": "vision.blocks.0.w", "vision.blocks.1.w": "vision.blocks.1.w",
    }  # fmt: skip


@pytest.mark.parametrize("names", [["a.w"], ["a.0.w", "a.1.w", "b.0.w", "b.1.w"]], ids=["none", "two"])
def test_no_stack_or_two_are_refused(names):
    with pytest.raises(UsageError, match="one stack of 2 layers"):
        renamed(names, 2, (0, 1))


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 100)), st.integers(1, 120))
def test_shards_hold_everything_once_and_stay_within_the_limit(sizes, limit):
    parts = shards(sizes, limit)
    assert [name for part in parts for name in part] == list(sizes)
    assert all(len(part) == 1 or sum(sizes[name] for name in part) <= limit for part in parts if part)
