import pytest

from ulskip_cli.core.config import compose_training
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import Stage, even
from ulskip_cli.training.preflight import schedules, trained_exits, trainer_arguments


def check(extra):
    config = compose_training([])
    trainer_arguments(config.replace(train=config.train.replace(training_args=extra)))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"gradient_checkpointing": True}, "checkpointing.*train.batch_size"),
        ({"fsdp": "full_shard"}, "train.training_args.fsdp"),
        ({"deepspeed": "zero3.json"}, "train.training_args.deepspeed"),
        ({"learning_rate": 1.0}, "train.training_args.learning_rate"),
        ({"save_only_model": True}, "train.training_args.save_only_model"),
        ({"per_device_eval_batch_size": 1}, "train.training_args.per_device_eval_batch_size"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "e.g. cosine"),
    ],
)
def test_what_would_train_something_else_is_refused(extra, message):
    with pytest.raises(UsageError, match=message):
        check(extra)


FULL = (Stage(0, tuple(range(12))),)


def test_each_ratio_has_the_layers_that_a_run_keeps():
    found = schedules(compose_training(["train.ratios=[1,2,3]"]), 12)
    assert found == {1.0: FULL, 2.0: (Stage(0, even(12, 6)),), 3.0: (Stage(0, even(12, 4)),)}


def test_a_positional_strategy_has_stages_that_depend_on_the_lengths():
    config = compose_training(["strategy=skip_decode", "train.ratios=[2]"])
    short, long = (schedules(config, 12, [length])[2.0] for length in (8, 80))
    layers = [[stage.kept_layers for stage in stages] for stages in (short, long)]
    assert len(short) > 1 and layers[0] == layers[1]
    assert short[-1].first_step < long[-1].first_step


def test_early_exit_trains_the_full_depth_with_an_exit_at_every_check():
    checks = ["strategy=early_exit", "strategy.min_exit=4", "strategy.every=3"]
    config = compose_training([*checks, "train.ratios=[2]"])
    assert schedules(config, 12) == {2.0: FULL}
    assert trained_exits(config, 12) == (4, 7, 10, 12)
    assert trained_exits(compose_training(["strategy=unified"]), 12) == ()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["strategy=search"], "strategy=search"),
        (["strategy=skip_decode", "train=adapter", "correction.kind=folded"], "later positions"),
        (["strategy=early_exit", "strategy.min_exit=12"], "min_exit"),
        (["strategy=early_exit", "train.distill_weight=1"], "distill_weight"),
        (["strategy=early_exit", "prompt_layers=kept"], "prompt_layers"),
        (["train.ratios=[20]"], "ratio=20"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_its_key(overrides, named):
    with pytest.raises(UsageError, match=named):
        schedules(compose_training(overrides), 12)
