import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.config_schema import ModelConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import read_headers, read_metadata
from ulskip_cli.core.weight_sizes import WeightSizes, sort_weight_sizes
from ulskip_cli.strategies import schedule
from ulskip_cli.strategies.cost import LINE_ERROR, LatencyFit, num_kept_for_cost

sizes = st.builds(
    lambda head, layer, n: WeightSizes(head, (layer,) * n), st.integers(0, 10**9), st.integers(1, 10**8), st.integers(3, 80)
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
            num_kept_for_cost(weights, target, even)
        return
    count = num_kept_for_cost(weights, target, even)
    assert weights.predicted_speedup(even(count)) >= target - 1e-9
    assert count == len(weights.layers) or weights.predicted_speedup(even(count + 1)) < target


def test_bloom_7b1_at_half_its_layers():
    hidden, vocab = 4096, 250880
    layer = 2 * (12 * hidden * hidden + 13 * hidden)
    weights = WeightSizes(2 * (vocab * hidden + 2 * hidden), (layer,) * 30)
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
    assert sort_weight_sizes(tensors, 2, 100) == WeightSizes(3232, (256, 288))
    del tensors["lm_head.weight"]  # tied: the embedding is the head
    assert sort_weight_sizes(tensors, 2, 100) == WeightSizes(3232, (256, 288))


def test_names_without_a_stack_tell_nothing():
    assert sort_weight_sizes({"embed.weight": ([100, 8], 3200)}, 2, 100) is None


def test_headers_and_loaded_parameters_agree(model_folder):
    from ulskip_cli.inference.loading import load

    config = ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="float32")
    assert read_headers(model_folder)
    assert read_metadata(config).weights == load(config).metadata.weights


fits = st.builds(
    lambda n, fixed, layer: LatencyFit.of(n, {count: fixed + layer * count for count in {2, max(2, n // 3), n}}),
    st.integers(3, 80), st.floats(0, 1), st.floats(1e-3, 1),
)  # fmt: skip


@given(fits)
def test_a_line_is_found_again(fit):
    assert all(abs(residual) < 1e-6 for residual in fit.residuals.values())
    assert fit.share(fit.num_layers) == 1


@given(fits, st.floats(1, 40))
def test_the_depth_is_the_one_whose_step_is_so_much_faster(fit, target):
    highest = 1 / fit.share(2)
    depth = fit.depth(target)
    if target <= highest:
        fit.check(target)
        assert 1 / fit.share(depth) == pytest.approx(target)
    else:
        assert depth == 2
    if target > highest * LINE_ERROR:
        with pytest.raises(UsageError, match="out of reach by latency: the highest reachable ratio is"):
            fit.check(target)


def test_an_offset_moves_the_depth_the_other_way():
    fit = LatencyFit.of(12, {12: 15.0, 2: 5.0})  # 3 + 1 a layer
    assert fit.depth(2) == pytest.approx(4.5)
    assert fit.depth(2, offset=1 / 15) == pytest.approx(3.5)
    with pytest.raises(UsageError, match="expected ratio >= 1"):
        fit.check(0.5)


def test_steps_of_several_kinds_take_their_bytes():
    weights = WeightSizes(100, (100,) * 9)
    assert weights.staged_speedup([(3, range(4)), (1, range(9))]) == pytest.approx(4 * 1000 / (3 * 500 + 1000))


def test_noise_is_kept_as_residuals():
    fit = LatencyFit.of(10, {10: 11.0, 5: 6.3, 2: 3.0})
    assert fit.layer_seconds == pytest.approx(1.0, rel=0.05)
    assert max(map(abs, fit.residuals.values())) == pytest.approx(0.03, rel=0.5)
