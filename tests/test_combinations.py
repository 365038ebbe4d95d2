"""What is declared to work runs on the bundled model: engines with needs, and needs together."""

from importlib.util import find_spec
from itertools import combinations

import pytest
from core.test_capabilities import SUPPORTS
from needs import folders as folders
from needs import overrides_for

from ulskip_cli import api
from ulskip_cli.core.capabilities import ALL, TOGETHER, Need
from ulskip_cli.core.engines import engine_class
from ulskip_cli.experiments.runner import Session

NOT_ASKED = {Need.OTHER_ENGINE, Need.MEMORY_BUDGET}
pytestmark = pytest.mark.slow
ENGINE_NEEDS = [
    (engine, need) for engine in SUPPORTS for need in Need if need in SUPPORTS[engine] - NOT_ASKED
]
PAIRS = [
    (one, other)
    for one, other in combinations(Need, 2)
    if {one, other} & TOGETHER.keys() and not {one, other} & NOT_ASKED
    if Need.LATENCY not in (one, other)  # a minute each; every engine runs it alone
    if other in TOGETHER.get(one, ALL) and one in TOGETHER.get(other, ALL)
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
