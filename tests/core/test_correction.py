import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from reference import hf

from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import KINDS, PATCHES, Adapter, read_adapter_file, solve_ridge
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelFolder, ModelMetadata
from ulskip_cli.core.weight_sizes import WeightSizes
from ulskip_cli.strategies.plan import make_plan

AT_GAPS = [name for name, kind in PATCHES.items() if not kind.is_folded]
FOLDED = [name for name, kind in PATCHES.items() if kind.is_folded]


def pairs(count=50, shift=1):
    """Two batches of inputs, and targets that patches reproduce, without bias if shift is 0."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 6, generator=generator)
    return [(part, 0.5 * part + shift) for part in inputs.split(30)]


@pytest.mark.parametrize("name", AT_GAPS)
def test_a_new_module_returns_zeros_and_has_the_counted_parameters(name):
    kind, ((inputs, _), _) = PATCHES[name], pairs()
    module = kind.module(6)
    assert not module(inputs).any()
    assert sum(part.numel() for part in module.parameters()) == kind.num_parameters(6) > 0


@pytest.mark.parametrize("name", AT_GAPS)
def test_a_module_with_the_solved_state_reproduces_the_targets(name):
    module = PATCHES[name].module(6)
    shift = any("bias" in part for part in module.state_dict())
    module.load_state_dict(PATCHES[name].solve(pairs(shift=shift), 1e-9).parts)
    for inputs, targets in pairs(shift=shift):
        torch.testing.assert_close(module(inputs), targets, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("name", FOLDED)
def test_a_linear_layer_with_a_folded_patch_adds_the_patch_to_its_output(name, has_bias):
    (inputs, _), _ = pairs()
    patch = PATCHES[name].solve(pairs(), 0.1, has_bias)
    weight, bias = torch.eye(6) + inputs[:6], inputs[6] if has_bias else None
    output = torch.nn.functional.linear(inputs, weight, bias)
    wide = None if bias is None else bias.double()
    merged = torch.nn.functional.linear(inputs.double(), *patch.merged(weight.double(), wide))
    expected = output + patch.added(output)
    torch.testing.assert_close(merged.float(), expected, rtol=1e-4, atol=1e-4)


def test_kinds_that_take_no_time_are_those_that_a_checkpoint_can_contain():
    assert {name for name, kind in KINDS.items() if not kind.has_module} == {*FOLDED, "none"}


@given(
    st.integers(0, 10_000),
    st.integers(1, 7),
    st.booleans(),
    st.one_of(st.just(1e-14), st.floats(0.01, 10)),
    st.integers(20, 40),
)
@example(0, 1, True, 0.1, 1)
def test_a_solution_is_that_of_penalized_least_squares(seed, parts, has_bias, ridge, count):
    generator = torch.Generator().manual_seed(seed)
    x, d = (torch.randn(count, width, generator=generator).double() for width in (5, 4))
    d = d + x[:, :1] + 3
    means = [one.mean(0) * has_bias for one in (x, d)]
    centered, target = x - means[0], d - means[1]
    penalty = ridge * centered.pow(2).sum() / 5  # relative to the mean variance of the inputs
    rows = torch.cat([centered, penalty.sqrt() * torch.eye(5)])
    expected = torch.linalg.lstsq(rows, torch.cat([target, torch.zeros(5, 4)])).solution
    # the positions arrive in several parts
    got = solve_ridge(zip(x.chunk(parts), d.chunk(parts), strict=True), ridge, has_bias)
    torch.testing.assert_close(got.pop("weight"), expected, rtol=1e-6, atol=1e-8)
    assert got.keys() == ({"bias"} if has_bias else set())
    for bias in got.values():  # the residuals have a mean of 0
        torch.testing.assert_close(means[0] @ expected + bias, means[1])


# ---- Skip adapters and predictions ----


@pytest.fixture
def model(model_folder):
    return hf(model_folder)


@pytest.fixture
def write(model, tmp_path):
    """Return a function that writes the record of a skip adapter and returns its folder."""

    def written(name="adapter", **changes):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        base = {"fingerprint": ModelFolder(model).fingerprint}
        record = {"base": base, "kept_sets": [[0, 5]], "kind": "full", **changes}
        (folder / "adapter.json").write_text(json.dumps(record))
        return folder

    return written


@pytest.mark.parametrize(
    "change", [{"kept_sets": 7}, {"kept_sets": [0, 1]}, {"base": "x"}, {"kind": "other"}]
)
def test_a_damaged_record_is_refused_by_its_key(model, write, change):
    with pytest.raises(UsageError, match=rf"{next(iter(change))}.*adapter\.json"):
        read_adapter_file(write(**change), model)


def test_a_record_of_another_model_is_refused(model, write):
    assert read_adapter_file(write(), model).kept_sets == ((0, 5),)
    with pytest.raises(UsageError, match=r"correction\.path=.*for the weights of .* other weights"):
        read_adapter_file(write(base={"fingerprint": "other"}), model)


def test_the_folder_is_the_one_of_the_layers(model, write):
    folders = [write("a"), write("b", kept_sets=[[0, 2, 5]])]
    adapter = Adapter(path=tuple(map(str, folders)))
    assert adapter.folder_for(model, [(0, 2, 5)]) == str(folders[1])
    assert adapter.folder_for(model, []) is None
    with pytest.raises(UsageError, match=r"\[0,5\] or \[0,2,5\]"):
        adapter.folder_for(model, [(0, 1)])


def test_adapters_of_different_kinds_are_refused(model, write):
    one, other = write("a", kind="folded"), write("b")
    assert Adapter(path=(str(one),)).patch_kind(model) is PATCHES["folded"]
    with pytest.raises(UsageError, match="folded and full"):
        Adapter(path=(str(one), str(other))).patch_kind(model)


METADATA = ModelMetadata(6, None, WeightSizes(50, (100,) * 6), hidden_size=3, bytes_per_weight=2)


def predicted(*overrides):
    config = compose(["strategy=custom", "strategy.layers=[0,2,5]", *overrides])
    return make_plan(config, METADATA).predicted_speedup


def test_the_predicted_speedup_counts_the_patch_of_each_gap():
    folded = predicted("correction=patch", "correction.kind=folded")
    assert predicted() == folded == pytest.approx(650 / 350)
    patch = 2 * (3 * 3 + 3)  # bytes
    assert predicted("correction=patch") == pytest.approx(650 / (350 + 2 * patch))
