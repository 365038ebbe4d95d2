"""What is declared to work runs on the bundled model: engines with needs, and needs together."""

from importlib.util import find_spec
from itertools import combinations, permutations

import pytest
from core.test_capabilities import SUPPORTS
from needs import RECIPES, overrides_for
from needs import folders as folders

from ulskip_cli import api
from ulskip_cli.core.capabilities import ALL, TOGETHER, Need
from ulskip_cli.core.engines import engine_class
from ulskip_cli.experiments.runner import Models

NOT_ASKED = {Need.OTHER_ENGINE, Need.NO_TOKENIZER}
ENGINE_NEEDS = [
    (engine, need)
    for engine in SUPPORTS
    if engine != "auto"  # which is torch or transformers
    for need in Need
    if need in SUPPORTS[engine] - NOT_ASKED
    and (need is not Need.SINGLE_EXITS or Need.EARLY_EXIT in SUPPORTS[engine])
]
NOT_HERE = [
    # the skip adapter here is made for other weights and for evenly spread layers
    {Need.ADAPTER, Need.STAGES},
    {Need.ADAPTER, Need.CALIBRATION},
]
# Not tried with others: look-ups, which keep all layers, and what comes with early exit alone.
ALONE = NOT_ASKED | {Need.LOOK_UPS, Need.SINGLE_EXITS}


def can_run_together(*needs):
    """Return True if needs exclude no other, set no key twice, and one engine supports all."""
    recipes = [text for need in needs for text in RECIPES[need]]
    has_engine = any(SUPPORTS[engine].issuperset(needs) for engine in ("torch", "transformers"))
    is_allowed = all(
        other in TOGETHER.get(need, ALL) and {need, other} not in NOT_HERE
        for need, other in permutations(needs, 2)
    )
    keys = {text.partition("=")[0] for text in recipes}
    return has_engine and is_allowed and len(keys) == len({*recipes})


def covering_runs():
    """Return sets of needs that together contain every pair of needs that can run together."""
    needs = [need for need in Need if need not in ALONE]
    left = [pair for pair in combinations(needs, 2) if can_run_together(*pair)]
    runs = []
    while left:
        run = list(left[0])
        for need in sorted(needs, key=lambda need: -sum(need in pair for pair in left)):
            if need not in run and can_run_together(*run, need):
                run.append(need)
        left = [pair for pair in left if not {*pair} <= {*run}]
        runs.append(run)
    return runs


@pytest.fixture(scope="module")
def session():
    return Models()


def run(session, folder, *overrides):
    rows = api.evaluate(*overrides, f"results_dir={folder}", models=session)
    assert rows[-1].is_done, rows[-1]
    return rows[-1]


@pytest.mark.parametrize(("engine", "need"), ENGINE_NEEDS, ids=str)
def test_an_engine_runs_what_it_supports(engine, need, session, folders, tmp_path):
    kind = engine_class(engine)
    if kind.modules and not any(map(find_spec, kind.modules)):
        pytest.skip(f"the package of engine={engine} is not installed")
    overrides = overrides_for(need, supports=SUPPORTS[engine], **folders)
    run(session, tmp_path, *overrides, f"engine={engine}")


@pytest.mark.parametrize(
    "needs", covering_runs(), ids=lambda needs: "+".join(need.name for need in needs)
)
def test_needs_that_can_be_combined_run_together(needs, session, folders, tmp_path):
    run(session, tmp_path, *overrides_for(*needs, **folders), "speed.enabled=false")
