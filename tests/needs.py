"""Overrides of runs of the bundled model by `Need`, and data beside the project."""

import os
from pathlib import Path

import pytest
from reference import save_adapter

from ulskip_cli.core.capabilities import ALL, Need
from ulskip_cli.core.config_schema import Config

LOOK_UP = ["decoding.draft_tokens=2", "decoding.draft=ngram"]
ALONE = ["strategy.batch=na", "batch_size=1"]
RECIPES = {
    Need.BEAMS: ["decoding.num_beams=2"],
    Need.SAMPLING: ["decoding.do_sample=true"],
    Need.LOOK_UPS: [*LOOK_UP, "batch_size=1"],
    Need.COPY_DRAFTS: ["decoding.draft_tokens=2", "batch_size=1"],
    Need.BATCHES: ["batch_size=2"],
    Need.EARLY_EXIT: ["strategy=early_exit", "strategy.threshold=0.5"],
    Need.SINGLE_EXITS: ["strategy=early_exit", "strategy.threshold=0.5", *ALONE],
    Need.STAGES: ["strategy=skip_decode", "strategy.horizon=2"],
    Need.SKIPPED_LAYERS: ["strategy=unified"],
    Need.ALL_LAYERS: ["strategy=full"],
    Need.FULL_PROMPT: ["prompt_layers=all"],
    Need.KEPT_PROMPT: ["prompt_layers=kept"],
    Need.FIRST_PROMPT: ["prompt_layers=first:5"],
    Need.FITTED_PATCHES: ["correction=patch", "correction.kind=folded"],
    Need.PATCHES: ["correction=patch"],
    Need.ADAPTER: ["correction=adapter", "correction.path={adapter}"],
    Need.NO_TOKENIZER: ["model=random", "model.path=llama-12x256"],
    Need.CALIBRATION: ["strategy=block_influence"],
    Need.OTHER_BASELINE: ["baseline=true", "baseline_engine=transformers"],
    Need.OTHER_ENGINE: ["engine=llama_cpp"],
}
SMALL = ["limit=2", "max_new_tokens=3", "calibration.examples=4", "batch_size=2"]
SMALL += ["speed.seconds=0", "speed.new_tokens=4", "speed.prompt_tokens=4"]
SMALL.append("baseline=false")


def overrides_for(*needs, supports=ALL, command="run", **paths):
    """Return overrides of a small run that has needs, with those keys that the command reads."""
    asked = {}
    for need in needs:
        for text in RECIPES[need]:
            key = text.partition("=")[0]
            if asked.get(key, text) != text:
                pytest.skip(f"{key} cannot have two values")
            asked[key] = text
    whole = Need.FULL_PROMPT in supports or not supports.issuperset(needs)
    small = SMALL if whole else [*SMALL, "prompt_layers=kept"]
    given = {text.partition("=")[0]: text for text in small}
    chosen = {key: text for key, text in given.items() if command in Config.readers(key)} | asked
    for key in chosen:
        for name, path in paths.items():
            chosen[key] = chosen[key].replace(f"{{{name}}}", str(path))
    return list(chosen.values())


def shared_data(name):
    """Return a file of the data beside the project; skip the test if it is missing."""
    root = Path(__file__).parent.parent.parent / "shared" / "data"
    file = Path(os.environ.get("ULSKIP_SHARED_DATA", root)) / name
    if not file.is_file():
        pytest.skip(f"requires {name} in the folder that ULSKIP_SHARED_DATA names")
    return file


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Return the folder of a skip adapter of the bundled model, which changes nothing."""
    from ulskip_cli.core.config import compose
    from ulskip_cli.core.correction import NO_PATCHES
    from ulskip_cli.core.schedule import even
    from ulskip_cli.inference.loading import load
    from ulskip_cli.inference.skip_adapter import zero_adapter

    config = compose([])
    model = load(config.model).model
    adapter = zero_adapter(model, [even(12, 6)], NO_PATCHES)
    return {"adapter": save_adapter(adapter, config.model, tmp_path_factory.mktemp("adapter"))}
