import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.options import option
from ulskip_cli.strategies.static import Unified

UNUSED = [
    (["strategy=custom", "strategy.layers=[0,5]"], "ratio=3"),
    (["strategy=custom", "strategy.layers=[0,5]"], "ratio_basis=cost"),
    (["strategy=full"], "ratio=3"),
    (["strategy=full"], "prompt_layers=kept"),
    ([], "calibration.examples=9"),
    ([], "decoding.draft=ngram"),
    ([], "name=other"),
    ([], "tracker=tensorboard"),
    ([], "launcher.workers=3"),
    ([], "baseline_engine=auto"),
]
USED = [
    *[([], "ratio=3"), ([], "ratio_basis=cost"), ([], "seed=2"), ([], "limit=5"), ([], "offset=1")],
    *[([], "batch_size=4"), ([], "prompt_layers=kept"), ([], "baseline=false")],
    *[([], "task.pair=en-de"), ([], "task.source_language=Deutsch"), ([], "decoding=beam")],
    *[([], "decoding.max_new_tokens=9"), ([], "engine=torch"), ([], "baseline_engine=torch")],
    *[([], "strategy=top_skip"), ([], "strategy.spacing=reference")],
    *[([], "correction=patch"), (["correction=patch"], "correction.kind=folded")],
    (["correction=patch"], "correction.responses=own"),
    (["correction=patch"], "calibration.examples=9"),
    (["strategy=block_influence"], "calibration.examples=9"),
    (["decoding=self_speculative"], "decoding.draft=both"),
    (["strategy=custom", "strategy.layers=[0,5]"], "strategy.layers=[0,4]"),
]


@pytest.mark.parametrize(("overrides", "change"), UNUSED, ids=str)
def test_values_that_change_no_result_change_no_identity(overrides, change):
    assert compose([*overrides, change]).identity == compose(overrides).identity


@pytest.mark.parametrize(("overrides", "change"), USED, ids=str)
def test_values_that_change_results_change_the_identity(overrides, change):
    assert compose([*overrides, change]).identity != compose(overrides).identity


class UnifiedWithMore(Unified):
    gain: float = option(1.0, "an option of a later version")


# Classes of ulskip are not named in identities.
UnifiedWithMore.__module__ = Unified.__module__
UnifiedWithMore.__qualname__ = Unified.__qualname__


def test_a_new_option_with_a_default_changes_no_identity():
    config = compose(["strategy=unified"])
    later = config.replace(strategy=UnifiedWithMore(name="unified"))
    assert later.identity == config.identity
    changed = config.replace(strategy=UnifiedWithMore(name="unified", gain=2))
    assert changed.identity != later.identity
