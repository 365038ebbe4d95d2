import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import NUM_LAYERS, VOCAB_SIZE

from ulskip_cli.core.config_schema import ModelConfig
from ulskip_cli.core.model_metadata import (
    WeightSizes,
    gaps,
    read_headers,
    read_metadata,
    sort_weight_sizes,
)
from ulskip_cli.inference.half_layers import split_layers

sizes = st.builds(
    lambda head, layer, n: WeightSizes(head, (layer,) * n),
    st.integers(0, 10**9),
    st.integers(1, 10**8),
    st.integers(3, 80),
)


@given(sizes)
def test_prediction_never_exceeds_the_layer_ratio(weights):
    kept = (0, len(weights.layers) - 1)
    assert weights.predicted_speedup(range(len(weights.layers))) == 1
    assert 1 <= weights.predicted_speedup(kept) <= len(weights.layers) / 2


def test_bloom_7b1_at_half_its_layers():
    hidden, vocab = 4096, 250880
    layer = 2 * (12 * hidden * hidden + 13 * hidden)
    weights = WeightSizes(2 * (vocab * hidden + 2 * hidden), (layer,) * 30)
    assert weights.predicted_speedup(range(15)) == pytest.approx(1.75, abs=0.01)


def test_tensors_are_sorted_into_layers_and_head():
    first = {"mlp.weight": ([8, 8], 256), "self_attn.q_proj.weight": ([8, 4], 128)}
    second = {**first, "experts.0.weight": ([8, 4], 32)}
    first |= {"self_attn.q_proj.bias": ([4], 16), "post_attention_layernorm.weight": ([8], 32)}
    tensors = {"model.embed_tokens.weight": ([100, 8], 3200), "lm_head.weight": ([100, 8], 3200)}
    tensors |= {"model.norm.weight": ([8], 32), "wpe.weight": ([64, 8], 2048)}
    for layer, parts in enumerate((first, second)):
        tensors |= {f"model.layers.{layer}.{name}": size for name, size in parts.items()}
    expected = WeightSizes(3232, (432, 416), attention=(144, 128), mlp=(256, 288))
    assert sort_weight_sizes(tensors, 2, 100) == expected
    del tensors["lm_head.weight"]  # tied: the embedding is the head
    assert sort_weight_sizes(tensors, 2, 100) == expected
    del tensors["model.layers.1.self_attn.q_proj.weight"]  # a layer without attention
    assert sort_weight_sizes({"embed.weight": ([100, 8], 3200)}, 2, 100) is None
    unknown = sort_weight_sizes(tensors, 2, 100)
    assert (unknown.attention, unknown.mlp, unknown.of_unit("attention")) == ((), (), None)


layer_parts = st.tuples(st.integers(1, 10**8), st.integers(1, 10**8), st.integers(0, 10**4))


@given(st.integers(0, 10**9), st.lists(layer_parts, min_size=2, max_size=40), st.data())
def test_skipped_parts_take_their_bytes_out_of_a_step(head, parts, data):
    attention, mlp, _ = zip(*parts, strict=True)
    weights = WeightSizes(head, tuple(map(sum, parts)), attention=attention, mlp=mlp)
    kept = sorted(data.draw(st.sets(st.integers(0, len(parts) - 1), min_size=1)))
    total = head + sum(weights.layers)
    assert weights.of_unit("layer") == weights
    for unit, own in (("attention", attention), ("mlp", mlp)):
        skipped = sum(own[i] for i in range(len(parts)) if i not in kept)
        speedup = weights.of_unit(unit).predicted_speedup(kept)
        assert speedup == pytest.approx(total / (total - skipped))
        assert 1 <= speedup <= weights.predicted_speedup(kept)


def test_parts_are_found_by_name_in_every_architecture(model):
    tensors = {name: (list(one.shape), 4 * one.numel()) for name, one in model.named_parameters()}
    weights = sort_weight_sizes(tensors, NUM_LAYERS, VOCAB_SIZE)
    for i, parts in enumerate(split_layers(model, "attention")):
        names = ([parts.attention], parts.mlp)
        for found, children in zip((weights.attention[i], weights.mlp[i]), names, strict=True):
            modules = [parts.layer.get_submodule(name) for name in children]
            assert found == 4 * sum(
                value.numel() for part in modules for value in part.parameters()
            )


def test_headers_and_loaded_parameters_agree(model_folder):
    from ulskip_cli.inference.loading import load

    config = ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="float32")
    assert read_headers(model_folder)
    assert read_metadata(config).weights == load(config).metadata.weights


def test_steps_of_several_kinds_take_their_bytes():
    speedup = WeightSizes(100, (100,) * 9).staged_speedup([(3, range(4)), (1, range(9))])
    assert speedup == pytest.approx(4 * 1000 / (3 * 500 + 1000))


@given(st.sets(st.integers(0, 9), min_size=1).map(sorted))
def test_a_gap_ends_at_a_kept_layer_behind_a_skipped_one(kept):
    expected = [layer for layer in [*kept, 10] if layer and layer - 1 not in kept]
    assert gaps(kept, 10) == expected
