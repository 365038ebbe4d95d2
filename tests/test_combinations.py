"""What is declared to work runs on the bundled model: engines with needs, and needs together."""

from importlib.util import find_spec

import pytest
from core.test_capabilities import SUPPORTS
from needs import folders as folders
from needs import overrides_for

from ulskip_cli import api
from ulskip_cli.core.capabilities import ALL, TOGETHER, Need
from ulskip_cli.core.engines import engine_class
from ulskip_cli.experiments.runner import Session

NOT_ASKED = {Need.OTHER_ENGINE}
# Not tried in pairs: many timings, and look-ups, which keep all layers.
ALONE = NOT_ASKED | {Need.LATENCY, Need.DRAFTS}
ENGINE_NEEDS = [
    (engine, need)
    for engine in SUPPORTS
    if engine != "auto"  # which is torch or transformers
    for need in Need
    if need in SUPPORTS[engine] - NOT_ASKED
    if need != Need.LATENCY or engine == "torch"  # many timings
    if need != Need.ADAPTER or Need.PATCHES in SUPPORTS[engine]  # the adapter here has such patches
]


def partners(need):
    """Return the needs that can be combined with a need, but for those of `ALONE`."""
    return [
        other
        for other in Need
        if other not in ALONE | {need}
        and other in TOGETHER.get(need, ALL)
        and need in TOGETHER.get(other, ALL)
    ]


# `ulskip bench` alone times patches of random weights.
NOT_IN_RUNS = {(Need.RANDOM_WEIGHTS, Need.PATCHES), (Need.RANDOM_WEIGHTS, Need.FOLDED_PATCHES)}
# All pairs take a quarter of an hour, so a need that excludes some runs beside a third of the rest.
PAIRS = [
    (need, other)
    for need in TOGETHER
    if need not in ALONE
    for other in partners(need)[::3]
    if (need, other) not in NOT_IN_RUNS
]


@pytest.fixture(scope="module")
def session():
    return Session()


def run(session, folder, *overrides):
    rows = api.evaluate(*overrides, f"results_dir={folder}", session=session)
    assert rows[-1].is_done, rows[-1]
    return rows[-1]


@pytest.mark.parametrize(("engine", "need"), ENGINE_NEEDS, ids=str)
def test_an_engine_runs_what_it_supports(engine, need, session, folders, tmp_path):
    kind = engine_class(engine)
    if kind.modules and not any(map(find_spec, kind.modules)):
        pytest.skip(f"the package of engine={engine} is not installed")
    overrides = overrides_for(need, supports=SUPPORTS[engine], **folders)
    run(session, tmp_path, *overrides, f"engine={engine}")


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=str)
def test_needs_that_can_be_combined_run_together(one, other, session, folders, tmp_path):
    run(session, tmp_path, *overrides_for(one, other, **folders))
