import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import stack_of
from torch import nn

from ulskip_cli.inference.gap_patch import GapPatch, patched_layer


def randomized(size=8):
    patch = GapPatch(size)
    for parameter in patch.parameters():
        nn.init.normal_(parameter)
    return patch


@given(st.integers(1, 9))
def test_a_patch_is_rebuilt_from_its_tensors(size):
    patch, hidden = randomized(size), torch.randn(2, size)
    again = GapPatch.from_parts({"linear": patch.linear.state_dict()})
    assert torch.equal(again(hidden), patch(hidden))


def test_a_patch_is_affine_in_the_hidden_state():
    patch, one, other = randomized(), torch.randn(8), torch.randn(8)
    offset = patch(torch.zeros(8))
    torch.testing.assert_close(
        patch(one + other) - offset, (patch(one) - offset) + (patch(other) - offset)
    )
    assert not torch.allclose(patch(one), one)


def test_hidden_states_keep_their_dtype():
    patch, hidden = randomized(), torch.randn(2, 8, dtype=torch.bfloat16)
    assert patch(hidden).dtype == torch.bfloat16
    torch.testing.assert_close(patch(hidden).float(), patch(hidden.float()), rtol=0.02, atol=0.02)


def test_a_patched_layer_shares_its_weights_and_leaves_the_layer_unchanged(model):
    layer = stack_of(model)[2]
    own = {id(parameter) for parameter in layer.parameters()}
    before, after = randomized(32), randomized(32)
    changed = patched_layer(layer, before, after)
    added = {id(parameter) for patch in (before, after) for parameter in patch.parameters()}
    assert {id(parameter) for parameter in changed.parameters()} == own | added
    assert {id(parameter) for parameter in layer.parameters()} == own
    assert type(changed) is not type(layer) and isinstance(changed, type(layer))
