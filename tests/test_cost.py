import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli import schedule
from ulskip_cli.cost import WeightBytes, weight_bytes
from ulskip_cli.errors import UsageError
from ulskip_cli.models.facts import describe, read_headers
from ulskip_cli.schema import ModelConfig

sizes = st.builds(
    lambda head, layer, n: WeightBytes(head, (layer,) * n), st.integers(0, 10**9), st.integers(1, 10**8), st.integers(3, 80)
)


@given(sizes)
def test_keeping_all_predicts_one(weights):
    assert weights.predicted_speedup(range(len(weights.layers))) == 1


@given(sizes)
def test_prediction_never_exceeds_the_layer_ratio(weights):
    kept = schedule.even(len(weights.layers), 2)
    assert 1 <= weights.predicted_speedup(kept) <= len(weights.layers) / 2


@given(sizes, st.floats(1, 40))
def test_num_kept_is_the_largest_that_reaches_the_target(weights, target):
    def even(count):
        return schedule.even(len(weights.layers), count)

    if weights.predicted_speedup(even(2)) < target - 1e-9:
        with pytest.raises(UsageError, match="head alone"):
            weights.num_kept(target, even)
        return
    count = weights.num_kept(target, even)
    assert weights.predicted_speedup(even(count)) >= target - 1e-9
    assert count == len(weights.layers) or weights.predicted_speedup(even(count + 1)) < target


def test_bloom_7b1_at_half_its_layers():
    hidden, vocab = 4096, 250880
    layer = 2 * (12 * hidden * hidden + 13 * hidden)
    weights = WeightBytes(2 * (vocab * hidden + 2 * hidden), (layer,) * 30)
    assert weights.predicted_speedup(schedule.reference(30, 15)) == pytest.approx(1.75, abs=0.01)


def test_tensors_are_sorted_into_layers_and_head():
    tensors = {
        "model.embed_tokens.weight": ([100, 8], 3200),
        "model.layers.0.mlp.weight": ([8, 8], 256),
        "model.layers.1.mlp.weight": ([8, 8], 256),
        "model.layers.1.experts.0.weight": ([8], 32),
        "model.norm.weight": ([8], 32),
        "lm_head.weight": ([100, 8], 3200),
        "wpe.weight": ([64, 8], 2048),
    }
    assert weight_bytes(tensors, 2, 100) == WeightBytes(3232, (256, 288))
    del tensors["lm_head.weight"]  # tied: the embedding is the head
    assert weight_bytes(tensors, 2, 100) == WeightBytes(3232, (256, 288))


def test_names_without_a_stack_tell_nothing():
    assert weight_bytes({"embed.weight": ([100, 8], 3200)}, 2, 100) is None


def test_headers_and_loaded_parameters_agree(model_folder):
    from ulskip_cli.models.load import load

    config = ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="float32")
    assert read_headers(model_folder)
    assert describe(config).weights == load(config).facts.weights
