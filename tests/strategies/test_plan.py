from dataclasses import replace

import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import NO_PATCHES, PATCHES
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.core.strategy import Strategy
from ulskip_cli.core.weight_sizes import WeightSizes
from ulskip_cli.corrections import Adapter
from ulskip_cli.strategies.cost import DRAFT_VOCAB
from ulskip_cli.strategies.plan import make_plan

METADATA = ModelMetadata(
    num_layers=12, kv_bytes_per_layer=100, weights=WeightSizes(300, (100,) * 12)
)


def test_a_plan_states_all_three_speedups():
    plan = make_plan(compose(["ratio=2"]), METADATA)
    assert plan.target_speedup == plan.layer_ratio == 2.0
    assert plan.predicted_speedup == pytest.approx(1500 / 900)
    assert (plan.kv_bytes_per_token, plan.kept_kv_bytes_per_token) == (1200, 600)


@pytest.mark.parametrize(("strategy", "warns"), [("full", True), ("unified", False)])
def test_an_adapter_has_no_effect_on_all_layers(monkeypatch, strategy, warns):
    monkeypatch.setattr(Adapter, "patch_kind", lambda self, model: NO_PATCHES)
    adapter = ["correction=adapter", "correction.path=a", f"strategy={strategy}", "ratio=2"]
    plan = make_plan(compose(adapter), METADATA)
    assert [text.partition(" has no effect")[0] for text in plan.warnings] == (
        ["correction=adapter"] * warns
    )


def test_an_adapter_with_patches_is_refused_by_an_engine_that_has_none(monkeypatch):
    monkeypatch.setattr(Adapter, "patch_kind", lambda self, model: PATCHES["full"])
    adapter = ["correction=adapter", "correction.path=a", "ratio=2", "engine=llama_cpp"]
    with pytest.raises(NotApplicable, match="patches that are not folded"):
        make_plan(compose(adapter), METADATA)


def test_drafts_are_checked_by_every_layer_so_all_keys_stay():
    drafted = ["decoding=self_speculative", "ratio=2", "batch_size=1"]
    assert make_plan(compose(drafted), METADATA).kept_kv_bytes_per_token == 1200
    for everything in ("strategy=full", "ratio=1"):
        with pytest.raises(UsageError, match=r"decoding\.draft=ngram"):
            make_plan(compose([*drafted, everything]), METADATA)


def test_look_up_drafts_skip_no_layers():
    looked_up = ["decoding=prompt_lookup", "batch_size=1"]
    plan = make_plan(compose([*looked_up, "ratio=2"]), METADATA)  # the preset chooses the strategy
    assert plan.draft_cost is plan.predicted_speedup is None
    assert plan.kept_kv_bytes_per_token == 1200
    assert plan.keeps_all and not plan.is_full_model
    with pytest.raises(UsageError, match="strategy=full"):
        make_plan(compose([*looked_up, "strategy=unified"]), METADATA)
    make_plan(compose([*looked_up, "decoding.draft=both", "strategy=unified"]), METADATA)
    with pytest.raises(UsageError, match="set batch_size=1"):
        make_plan(compose(["decoding=prompt_lookup", "batch_size=2"]), METADATA)


def test_a_draft_reads_a_part_of_the_head():
    drafted = compose(["decoding=self_speculative", "ratio=2", "batch_size=1"])
    assert make_plan(compose(["ratio=2"]), METADATA).draft_cost is None
    for size, cost in ((1000, 900 / 1500), (10 * DRAFT_VOCAB, 630 / 1500)):
        metadata = replace(METADATA, vocab_size=size)
        assert make_plan(drafted, metadata).draft_cost == pytest.approx(cost)
    assert make_plan(drafted, METADATA).draft_cost is None


def test_a_timed_depth_between_two_counts_is_met_by_two_stages():
    options = ["ratio=2", "ratio_basis=latency", "speed.new_tokens=21"]
    plan = make_plan(compose(options), METADATA, 4.7)
    assert (len(plan.kept_layers), plan.mean_kept(20)) == (5, 4.7)
    (later,) = plan.later_stages
    assert (later.first_step, len(later.kept_layers)) == (14, 4)
    assert plan.layer_ratio == pytest.approx(12 / 4.7)
    assert plan.predicted_speedup == pytest.approx(1500 / (0.7 * 800 + 0.3 * 700))
    for depth, count in ((5.0, 5), (4.001, 4), (4.999, 5), (2.0, 2), (12.0, 12)):
        whole = make_plan(compose(options), METADATA, depth)
        assert (len(whole.kept_layers), whole.later_stages) == (count, ())
    top = make_plan(compose([*options, "strategy=top_skip"]), METADATA, 4.5)
    assert [stage.kept_layers for stage in top.stages] == [(0, 1, 2, 3, 4), (0, 1, 2, 3)]
    cost = compose(["ratio=2", "ratio_basis=cost"])
    untimed = make_plan(compose(options), METADATA)
    assert "latency" in untimed.warnings[0]
    assert untimed.kept_layers == make_plan(cost, METADATA).kept_layers
    beyond_bytes = compose(["ratio=6", "ratio_basis=latency"])  # the clock may still reach it
    assert len(make_plan(beyond_bytes, METADATA).kept_layers) == MIN_KEPT


def test_unknown_stays_unknown():
    plan = make_plan(compose(["ratio_basis=cost"]), ModelMetadata(12, None, None))
    assert (plan.predicted_speedup, plan.kv_bytes_per_token) == (None, None)
    assert "ratio_basis" in plan.warnings[0]


def test_layers_of_a_users_strategy_are_checked_and_counted_as_they_are():
    class Theirs(Strategy):
        layers: tuple[int, ...]

        def kept_layers(self, request):
            return self.layers

    def planned(*layers, basis="layers", depth=None):
        strategy, overrides = Theirs(name="theirs", layers=layers), ["ratio=2"]
        config = compose([*overrides, f"ratio_basis={basis}"]).replace(strategy=strategy)
        return make_plan(config, METADATA, depth)

    assert planned(*range(8)).predicted_speedup == pytest.approx(1500 / 1100)
    for basis, depth in (("layers", None), ("cost", None), ("latency", 2.0)):
        with pytest.raises(UsageError, match="between 0 and 11"):
            planned(6, 12, basis=basis, depth=depth)


def test_one_block_meets_a_target_by_cost_with_its_single_patch():
    metadata = replace(METADATA, hidden_size=10)
    options = ["strategy=one_block", "correction=patch", "ratio=1.3", "ratio_basis=cost"]
    plan = make_plan(compose(options), metadata)
    assert plan.num_kept == 6  # 7 layers and a patch of 220 bytes would give 1500 / 1220 = 1.23
    assert plan.predicted_speedup == pytest.approx(1500 / 1120)


def test_early_exit_promises_what_its_layers_and_heads_cost():
    exits = ["strategy=early_exit", "ratio=2"]
    plan = make_plan(compose([*exits, "strategy.min_exit=2", "strategy.every=2"]), METADATA)
    assert plan.exits.target_depth == plan.mean_kept(10) == plan.target_kept == 6
    assert plan.layer_ratio == 2
    assert plan.predicted_speedup == pytest.approx(1500 / (3 * 300 + 600))
    assert plan.kept_kv_bytes_per_token == 1200 and not plan.keeps_all
    assert any("calibrated" in warning for warning in plan.warnings)


def test_early_exit_meets_a_target_by_cost_with_its_heads_counted():
    options = ["strategy=early_exit", "strategy.min_exit=2", "strategy.every=4", "ratio_basis=cost"]
    plan = make_plan(compose([*options, "ratio=1.5"]), METADATA)
    assert plan.exits.target_depth == 5 and plan.predicted_speedup == pytest.approx(1500 / 800)
    with pytest.raises(UsageError, match=r"ratio=\d.*ratio_basis=cost.*ratio <= "):
        make_plan(compose([*options, "ratio=4"]), METADATA)
