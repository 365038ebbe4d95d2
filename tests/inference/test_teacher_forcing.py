import pytest
import torch
from reference import NUM_LAYERS, one_stage, random_ids, reference_logits, response_logits

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.teacher_forcing import response_losses

KEPT_SETS = [tuple(range(NUM_LAYERS)), (0, 2, 5), (3, 4, 5)]


@pytest.mark.parametrize("kept", KEPT_SETS)
def test_two_passes_equal_the_uncached_reference(model, kept):
    prompt, response = random_ids(2, 7), random_ids(2, 5, seed=1)
    view = model if len(kept) == NUM_LAYERS else shallow_view.shallow_view(model, kept)
    logits = response_logits(
        model, one_stage(view, kept), prompt, torch.ones_like(prompt), response
    )
    ids = torch.cat([prompt, response], 1)
    expected = reference_logits(model, ids, torch.ones_like(ids), 7, kept)[:, 6:-1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_padding_changes_no_loss(model):
    kept, view = (0, 2, 5), shallow_view.shallow_view(model, (0, 2, 5))
    prompt, response = random_ids(1, 4), random_ids(1, 3, seed=1)
    ones = torch.ones_like
    alone = response_losses(
        response_logits(model, one_stage(view, kept), prompt, ones(prompt), response), response
    )
    padded_prompt = torch.nn.functional.pad(prompt, (3, 0))
    mask = torch.nn.functional.pad(ones(prompt), (3, 0))
    padded_response = torch.nn.functional.pad(response, (0, 2))
    padded = response_losses(
        response_logits(model, one_stage(view, kept), padded_prompt, mask, padded_response),
        padded_response,
    )
    torch.testing.assert_close(padded[:, :3], alone, rtol=1e-4, atol=1e-4)


def test_the_prompt_gets_gradients_through_its_cache(llama):
    kept, prompt, response = (0, 2, 5), random_ids(1, 4), random_ids(1, 3, seed=1)
    view = shallow_view.shallow_view(llama, kept)
    logits = response_logits(
        llama, one_stage(view, kept), prompt, torch.ones_like(prompt), response
    )
    logits[:, 1:].sum().backward()  # the second pass alone
    layers = llama.model.layers
    assert layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0
    assert (
        layers[1].mlp.up_proj.weight.grad.abs().sum() > 0
    )  # skipped in decode, yet it made the prompt's keys
