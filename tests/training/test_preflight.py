from ulskip_cli.core.config import compose_training
from ulskip_cli.core.schedule import Stage, even
from ulskip_cli.training.preflight import trained_exits, trained_stages

FULL = (Stage(0, tuple(range(12))),)


def test_each_ratio_has_the_layers_that_a_run_keeps():
    found = trained_stages(compose_training(["train.ratios=[1,2,3]"]), 12)
    assert found == {1.0: FULL, 2.0: (Stage(0, even(12, 6)),), 3.0: (Stage(0, even(12, 4)),)}


def test_a_positional_strategy_has_stages_that_depend_on_the_lengths():
    config = compose_training(["strategy=skip_decode", "train.ratios=[2]"])
    short, long = (trained_stages(config, 12, [length])[2.0] for length in (8, 80))
    layers = [[stage.kept_layers for stage in stages] for stages in (short, long)]
    assert len(short) > 1 and layers[0] == layers[1]
    assert short[-1].first_step < long[-1].first_step


def test_early_exit_trains_the_full_depth_with_an_exit_at_every_check():
    checks = ["strategy=early_exit", "strategy.min_exit=4", "strategy.every=3"]
    config = compose_training([*checks, "train.ratios=[2]"])
    assert trained_stages(config, 12) == {2.0: FULL}
    assert trained_exits(config, 12) == (4, 7, 10, 12)
    assert trained_exits(compose_training(["strategy=unified"]), 12) == ()
