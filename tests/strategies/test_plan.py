import pytest

from ulskip_cli.core.config import compose, group_choices
from ulskip_cli.core.correction import PATCHES, Adapter
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.core.schedule import Stage
from ulskip_cli.core.strategy import Strategy
from ulskip_cli.core.weight_sizes import WeightSizes
from ulskip_cli.strategies.plan import make_plan
from ulskip_cli.strategies.static import Unified

WEIGHTS = WeightSizes(300, (100,) * 12)
METADATA = ModelMetadata(num_layers=12, kv_bytes_per_layer=100, weights=WEIGHTS)


def test_a_plan_states_all_three_speedups():
    plan = make_plan(compose(["ratio=2"]), METADATA)
    assert plan.target_speedup == plan.layer_ratio == 2.0
    assert plan.predicted_speedup == pytest.approx(1500 / 900)
    assert (plan.kv_bytes_per_token, plan.kept_kv_bytes_per_token) == (1200, 600)


def test_an_adapter_with_patches_is_refused_by_an_engine_that_has_none(monkeypatch):
    monkeypatch.setattr(Adapter, "patch_kind", lambda self, model: PATCHES["full"])
    adapter = ["correction=adapter", "correction.path=a", "ratio=2", "engine=llama_cpp"]
    with pytest.raises(NotApplicable, match="patches that are not folded"):
        make_plan(compose(adapter), METADATA)


@pytest.mark.parametrize("decoding", ["prompt_lookup", "self_speculative"])
def test_drafts_change_no_layers(decoding):
    drafted = [f"decoding={decoding}", "batch_size=1", "ratio=2"]
    full = make_plan(compose(drafted), METADATA)  # the preset chooses the strategy
    assert full.keeps_all and not full.is_full_model
    half = make_plan(compose([*drafted, "strategy=unified"]), METADATA)
    assert (len(half.kept_layers), half.predicted_speedup) == (6, None)
    plain = make_plan(compose(["ratio=2"]), METADATA)
    assert half.kept_kv_bytes_per_token == plain.kept_kv_bytes_per_token


def test_unknown_stays_unknown():
    plan = make_plan(compose([]), ModelMetadata(12, None, None))
    assert (plan.predicted_speedup, plan.kv_bytes_per_token) == (None, None)


def test_layers_of_a_users_strategy_are_checked_and_counted_as_they_are():
    class Theirs(Strategy):
        layers: tuple[int, ...]

        def kept_layers(self, request):
            return self.layers

    def planned(*layers):
        strategy = Theirs(name="theirs", layers=layers)
        return make_plan(compose(["ratio=2"]).replace(strategy=strategy), METADATA)

    assert planned(*range(8)).predicted_speedup == pytest.approx(1500 / 1100)
    (warning,) = planned(*range(8)).warnings
    assert warning == "strategy=theirs keeps 8 of 12 layers, but ratio=2 asks for 6"
    assert not planned(*range(6)).warnings
    with pytest.raises(UsageError, match="between 0 and 11"):
        planned(6, 12)


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [Stage(1, (0, 1))],
        [Stage(0, (0, 1)), Stage(0, (0,))],
        [Stage(0, (0, 1, 2)), Stage(2, (0, 3))],
        [Stage(0, (0, 1)), Stage(2, (0, 1, 2))],
    ],
    ids=str,
)
def test_stages_of_a_users_strategy_keep_layers_of_the_stage_before(stages):
    class Theirs(Strategy):
        def kept_layers(self, request):
            return (0, 1)

        def stages(self, request):
            return stages

    config = compose(["ratio=2"]).replace(strategy=Theirs(name="theirs"))
    with pytest.raises(UsageError, match=r"stage from step 0.*correct `stages`"):
        make_plan(config, METADATA)


@pytest.mark.parametrize("ratio", [1, 1.5, 2, 3])
@pytest.mark.parametrize("name", sorted({*group_choices("strategy")} - {"custom", "full"}))
def test_strategies_of_ulskip_keep_as_many_layers_as_the_ratio_asks_for(name, ratio):
    plan = make_plan(compose([f"strategy={name}", f"ratio={ratio}", "batch_size=1"]), METADATA)
    assert not [warning for warning in plan.warnings if "asks for" in warning]


def test_early_exit_promises_what_its_layers_and_heads_cost():
    exits = ["strategy=early_exit", "ratio=2"]
    plan = make_plan(compose([*exits, "strategy.min_exit=2", "strategy.every=2"]), METADATA)
    assert plan.exits.target_depth == plan.mean_kept(10) == plan.target_kept == 6
    assert plan.layer_ratio == 2
    assert plan.predicted_speedup == pytest.approx(1500 / (3 * 300 + 600))
    assert plan.kept_kv_bytes_per_token == 1200 and not plan.keeps_all
    assert any("calibrated" in warning for warning in plan.warnings)


def test_only_even_spacing_forgives_float_division():
    ratio = 10 / 7 * (1 + 1e-15)
    assert 10 / ratio < 7
    assert Unified(spacing="even").num_kept(10, ratio) == 7
    assert Unified(spacing="reference").num_kept(10, ratio) == 6
