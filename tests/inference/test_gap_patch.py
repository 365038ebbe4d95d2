import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import stack_of
from torch import nn

from ulskip_cli.inference.gap_patch import KINDS, GapPatch, patched_layer


def randomized(kind, size=8, rank=3):
    patch = GapPatch(kind, size, rank)
    for parameter in patch.parameters():
        nn.init.normal_(parameter)
    return patch


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


def test_a_patched_layer_shares_its_weights_and_leaves_the_layer_unchanged(model):
    layer = stack_of(model)[2]
    own = {id(parameter) for parameter in layer.parameters()}
    before, after = randomized("full", 32), randomized("low_rank", 32)
    changed = patched_layer(layer, before, after)
    added = {id(parameter) for patch in (before, after) for parameter in patch.parameters()}
    assert {id(parameter) for parameter in changed.parameters()} == own | added
    assert {id(parameter) for parameter in layer.parameters()} == own
    assert type(changed) is not type(layer) and isinstance(changed, type(layer))
