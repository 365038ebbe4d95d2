import pytest
from ulskip_cli.strategies.early_exit_plan import heads_per_step, make_exit_rule

from ulskip_cli.core.config import compose, instantiate
from ulskip_cli.core.errors import NotApplicable


def rule_of(*overrides, num_kept=6):
    config = compose(["strategy=early_exit", "batch_size=1", *overrides])
    return make_exit_rule(instantiate(config.strategy, "strategy"), config, 12, num_kept)


def test_the_rule_aims_at_the_kept_count_and_is_absent_at_full_depth():
    assert rule_of("decoding.max_new_tokens=9").target_depth == 6
    assert rule_of("decoding.max_new_tokens=9").horizon == 9
    assert rule_of(num_kept=12) is None


def test_static_strategies_have_no_rule_and_one_head():
    config = compose(["strategy=unified"])
    strategy = instantiate(config.strategy, "strategy")
    assert make_exit_rule(strategy, config, 12, 6) is None
    assert heads_per_step(strategy, config, 12)(6) == 1


def test_every_check_runs_the_head():
    config = compose(["strategy=early_exit", "strategy.min_exit=2", "strategy.every=4"])
    heads = heads_per_step(instantiate(config.strategy, "strategy"), config, 12)
    assert [heads(depth) for depth in (2, 5, 6, 10)] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["strategy.batch=na", "batch_size=8"], "batch_size"),
        (["decoding=beam"], "decoding.num_beams=1"),
        (["decoding.stop=[x]"], r"decoding\.stop=\[\]"),
        (["decoding.generate_kwargs={min_p: 0.1}"], "decoding.generate_kwargs=null"),
        (["decoding=self_speculative"], "decoding.draft_tokens=0"),
        (["engine=transformers"], "engine=auto"),
        (["decoding.compile=on"], "decoding.compile=auto"),
    ],
)
def test_what_early_exit_does_not_support_is_refused_with_the_key_to_change(overrides, named):
    with pytest.raises(NotApplicable, match=named):
        rule_of(*overrides)
