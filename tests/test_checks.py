import pytest

from ulskip_cli.checks import check_bench, check_run, check_training
from ulskip_cli.config import compose, compose_training
from ulskip_cli.errors import UsageError


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
        ("memory=3GB", "memory= is for `ulskip plan`"),
        ("ratio=99", "highest reachable ratio"),
        ("decoding.options={lenght_penalty: 1}", "unknown option"),
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
