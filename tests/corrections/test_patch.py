import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ModelMetadata, WeightSizes
from ulskip_cli.strategies.plan import make_plan

METADATA = ModelMetadata(6, None, WeightSizes(50, (100,) * 6), hidden_size=3, weight_bytes=2)


def predicted(*overrides):
    config = compose(["strategy=custom", "strategy.layers=[0,2,5]", *overrides])
    return make_plan(config, METADATA).predicted_speedup


def test_the_predicted_speedup_counts_the_patch_of_each_gap():
    folded = predicted("correction=patch", "correction.kind=folded")
    assert predicted() == folded == pytest.approx(650 / 350)
    patch = 2 * (3 * 3 + 3)  # bytes
    assert predicted("correction=patch") == pytest.approx(650 / (350 + 2 * patch))
