from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.weight_sizes import WeightSizes, gaps, sum_weight_sizes


@given(st.integers(0, 10**9), st.integers(1, 10**8), st.integers(3, 80))
def test_prediction_never_exceeds_the_layer_ratio(head, layer, count):
    weights = WeightSizes(head, (layer,) * count)
    kept = (0, len(weights.layer_bytes) - 1)
    assert weights.predicted_speedup(range(len(weights.layer_bytes))) == 1
    assert 1 <= weights.predicted_speedup(kept) <= len(weights.layer_bytes) / 2


def test_tensors_are_sorted_into_layers_and_head():
    first = {"mlp.weight": ([8, 8], 256), "self_attn.q_proj.weight": ([8, 4], 128)}
    second = {**first, "experts.0.weight": ([8, 4], 32)}
    first |= {"self_attn.q_proj.bias": ([4], 16), "post_attention_layernorm.weight": ([8], 32)}
    tensors = {"model.embed_tokens.weight": ([100, 8], 3200), "lm_head.weight": ([100, 8], 3200)}
    tensors |= {"model.norm.weight": ([8], 32), "wpe.weight": ([64, 8], 2048)}
    for layer, parts in enumerate((first, second)):
        tensors |= {f"model.layers.{layer}.{name}": size for name, size in parts.items()}
    expected = WeightSizes(3232, (432, 416))
    assert sum_weight_sizes(tensors, 2, 100) == expected
    del tensors["lm_head.weight"]  # tied: the embedding is the head
    assert sum_weight_sizes(tensors, 2, 100) == expected
    assert sum_weight_sizes({"embed.weight": ([100, 8], 3200)}, 2, 100) is None


@given(st.sets(st.integers(0, 9), min_size=1).map(sorted))
def test_a_gap_ends_at_a_kept_layer_behind_a_skipped_one(kept):
    expected = [layer for layer in [*kept, 10] if layer and layer - 1 not in kept]
    assert gaps(kept, 10) == expected
