import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import random_ids, stack_of
from torch import nn

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.gap_patch import KINDS, GapPatch, patched_layer


def randomized(kind, size=8, rank=3):
    patch = GapPatch(kind, size, rank)
    for parameter in patch.parameters():
        nn.init.normal_(parameter)
    return patch


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_patch_changes_nothing(kind):
    hidden = torch.randn(2, 3, 8)
    assert torch.equal(GapPatch(kind, 8, 3)(hidden), hidden)


@given(st.sampled_from(KINDS), st.integers(1, 9), st.integers(1, 4))
def test_a_patch_is_rebuilt_from_its_tensors(kind, size, rank):
    patch, hidden = randomized(kind, size, rank), torch.randn(2, size)
    again = GapPatch.from_tensors(patch.state_dict())
    assert again.kind == kind
    assert torch.equal(again(hidden), patch(hidden))


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_is_affine_in_the_hidden_state(kind):
    patch, one, other = randomized(kind), torch.randn(8), torch.randn(8)
    offset = patch(torch.zeros(8))
    torch.testing.assert_close(
        patch(one + other) - offset, (patch(one) - offset) + (patch(other) - offset)
    )
    assert not torch.allclose(patch(one), one)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_keep_their_dtype(kind):
    patch, hidden = randomized(kind), torch.randn(2, 8, dtype=torch.bfloat16)
    assert patch(hidden).dtype == torch.bfloat16
    torch.testing.assert_close(patch(hidden).float(), patch(hidden.float()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_patch_applies_to_bfloat16_states(kind):
    assert (
        randomized(kind).to(torch.bfloat16)(torch.randn(2, 8, dtype=torch.bfloat16)).dtype
        == torch.bfloat16
    )


def test_a_layer_without_patches_is_returned_as_it_is(llama):
    layer = stack_of(llama)[0]
    assert patched_layer(layer, None) is layer


def test_a_patched_layer_shares_its_weights_and_leaves_the_layer_unchanged(model):
    layer = stack_of(model)[2]
    own = {id(parameter) for parameter in layer.parameters()}
    before, after = randomized("full", 32), randomized("low_rank", 32)
    changed = patched_layer(layer, before, after)
    added = {id(parameter) for patch in (before, after) for parameter in patch.parameters()}
    assert {id(parameter) for parameter in changed.parameters()} == own | added
    assert {id(parameter) for parameter in layer.parameters()} == own
    assert type(changed) is not type(layer) and isinstance(changed, type(layer))


def test_a_patched_model_runs_and_its_source_computes_what_it_did(model):
    ids = random_ids(2, 5)
    with torch.no_grad():
        expected = model(ids).logits
        view = shallow_view.shallow_view(
            model, range(6), lambda place, layer: patched_layer(layer, randomized("full", 32))
        )
        assert not torch.allclose(view(ids).logits, expected)
        assert torch.equal(model(ids).logits, expected)
