import pytest

from ulskip_cli.checks import check_run, check_training
from ulskip_cli.config import compose, compose_training
from ulskip_cli.errors import UsageError


def test_what_can_work_passes():
    check_run(compose([]))
    check_training(compose_training([]))


@pytest.mark.parametrize(
    ("override", "message"),
    [("memory=3GB", "memory= is for `ulskip plan`"), ("ratio=99", "highest reachable ratio"), ("task=jsonl", "task.file")],
)
def test_what_no_run_can_do_is_refused(override, message):
    with pytest.raises(UsageError, match=message):
        check_run(compose([override]))
