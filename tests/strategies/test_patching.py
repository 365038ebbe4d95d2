import pytest
from ulskip_cli.strategies.patching import patch_of, patch_parameters

from ulskip_cli.core.config import compose, identity
from ulskip_cli.core.config_schema import PATCHES
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.core.weight_sizes import WeightSizes
from ulskip_cli.strategies.plan import make_plan

LAYERS = [100] * 6
METADATA = ModelMetadata(6, None, WeightSizes(50, tuple(LAYERS)), hidden_size=3, weight_bytes=2)
PATCHABLE = ["unified", "top_skip", "bottom_skip", "block_influence", "one_block", "search", "skip_decode", "custom"]


@pytest.mark.parametrize("strategy", PATCHABLE)
def test_static_strategies_accept_every_kind_of_patch(strategy):
    for kind in PATCHES:
        assert patch_of(compose([f"strategy={strategy}", f"strategy.patch={kind}"]).strategy) == kind


@pytest.mark.parametrize("strategy", ["full", "early_exit"])
def test_other_strategies_have_no_patches(strategy):
    assert patch_of(compose([f"strategy={strategy}"]).strategy) == "none"
    with pytest.raises(UsageError, match=r"strategy\.patch"):
        compose([f"strategy={strategy}", "strategy.patch=full"])


def test_invalid_values_are_refused_by_their_key():
    def plan(*overrides):
        return make_plan(compose(["strategy=unified", *overrides]), METADATA)

    with pytest.raises(UsageError, match=r"strategy\.patch.*diagonal"):
        plan("strategy.patch=diagonal")
    with pytest.raises(UsageError, match=r"strategy\.patch_rank"):
        plan("strategy.patch=low_rank", "strategy.patch_rank=0")


def test_combinations_without_an_effect_are_refused():
    for overrides, key in (
        (["strategy.patch=full", "model.skip_adapter=somewhere"], r"model\.skip_adapter"),
        (["strategy.patch=folded", "calibration.patch_order=joint"], r"calibration\.patch_order"),
        (["strategy.patch=folded", "model.quantization=torchao-int8"], r"model\.quantization"),
        (["strategy.patch=folded", "calibration.patch_centered=false", "model.quantization=bnb-nf4"], r"model\.quantization"),
        (["strategy.patch=bias", "calibration.patch_centered=false"], r"calibration\.patch_centered"),
    ):
        with pytest.raises(NotApplicable, match=key):
            compose(["model=hf", "model.path=x", *overrides])


def test_a_patch_reads_as_many_weights_as_it_has():
    assert patch_parameters("none", 8, 2) == patch_parameters("folded", 8, 2) == 0
    assert patch_parameters("bias", 8, 2) == 8
    assert patch_parameters("low_rank", 8, 2) == 2 * 2 * 8 + 8
    assert patch_parameters("full", 8, 2) == 8 * 8 + 8


def predicted(*overrides):
    return make_plan(compose(["strategy=custom", "strategy.layers=[0,2,5]", *overrides]), METADATA).predicted_speedup


def test_the_predicted_speedup_counts_the_patch_of_each_gap():
    assert predicted() == predicted("strategy.patch=folded") == pytest.approx(650 / 350)
    patch = 2 * (3 * 3 + 3)  # bytes
    assert predicted("strategy.patch=full") == pytest.approx(650 / (350 + 2 * patch))
    assert predicted("strategy.patch=bias") == pytest.approx(650 / (350 + 2 * 2 * 3))
    assert predicted("strategy.patch=low_rank", "strategy.patch_rank=1") == pytest.approx(650 / (350 + 2 * 2 * 9))


def test_unused_keys_of_patches_change_no_identity():
    plain = identity(compose(["strategy=unified"]))
    for unused in ("strategy.patch_rank=8", "calibration.responses=own", "calibration.patch_weights=norm"):
        assert identity(compose(["strategy=unified", unused])) == plain


def test_used_keys_of_patches_change_the_identity():
    found = [
        identity(compose(["strategy=unified", *overrides]))
        for overrides in (
            [],
            *([f"strategy.patch={kind}"] for kind in ("bias", "low_rank", "full", "folded")),
            ["strategy.patch=low_rank", "strategy.patch_rank=8"],
            ["strategy.patch=full", "calibration.examples=9"],
            ["strategy.patch=full", "calibration.responses=own"],
            ["strategy.patch=full", "calibration.patch_weights=norm"],
            ["strategy.patch=full", "calibration.patch_order=joint"],
            ["strategy.patch=full", "calibration.patch_centered=false"],
        )
    ]
    assert len(set(found)) == len(found)
    full = identity(compose(["strategy.patch=full"]))
    assert identity(compose(["strategy.patch=full", "strategy.patch_rank=8"])) == full
