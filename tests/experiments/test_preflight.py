import pytest

from ulskip_cli.core.config import compose, compose_training
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.experiments.preflight import check_bench, check_run
from ulskip_cli.training.preflight import check_training


def test_what_can_work_passes():
    check_run(compose([]))
    check_bench(compose([]))
    check_training(compose_training([]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("speed.enabled=false", "a bench measures nothing else"),
        ("baseline=false", "a bench compares with the full model"),
        ("speed.new_tokens=600", "within the model's context of 512, got 64 \\+ 600"),
        ("memory_budget=3GB", "memory_budget= is for `ulskip plan`"),
        ("ratio=99", "highest reachable ratio"),
        ("decoding.generate_kwargs={lenght_penalty: 1}", "unknown option"),
    ],
)
def test_what_no_bench_can_do_is_refused(override, message):
    with pytest.raises(UsageError, match=message):
        check_bench(compose([override]))


def test_a_bench_does_not_look_at_its_task():
    config = compose(["task=jsonl"])
    check_bench(config)
    with pytest.raises(UsageError):
        check_run(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.batch=na"], "strategy.batch=na serves batch_size=1 alone, got 8"),
        (["decoding=beam"], "does not go with beams"),
        (["decoding=self_speculative"], "does not go with drafts"),
        (["decoding.compile=on"], "does not go with compiled steps"),
        (["ratio_basis=latency"], "decides its depth itself"),
    ],
)
def test_a_point_that_early_exit_does_not_serve_is_none(overrides, message):
    with pytest.raises(NotApplicable, match=message):
        check_run(compose(["strategy=early_exit", *overrides]))


def test_early_exit_needs_texts():
    check_run(compose(["strategy=early_exit"]))
    with pytest.raises(NotApplicable, match="random prompts"):
        check_bench(compose(["strategy=early_exit"]))
    random = ["model=random", "model.path=llama-12x128", "strategy=early_exit"]
    with pytest.raises(UsageError, match="random weights cannot read"):
        check_run(compose(random))
    check_run(compose([*random, "strategy.threshold=0.5"]))


def test_early_exit_trains_without_a_threshold_and_without_schedules_parts():
    check_training(compose_training(["strategy=early_exit"]))
    with pytest.raises(UsageError, match="learns at every exit"):
        check_training(compose_training(["strategy=early_exit", "train.full_weight=1"]))
    with pytest.raises(UsageError, match="before the last of 12 layers"):
        check_training(compose_training(["strategy=early_exit", "strategy.min_exit=99"]))
    with pytest.raises(UsageError, match="prompt_layers=all"):
        check_training(compose_training(["strategy=early_exit", "prompt_layers=kept"]))
