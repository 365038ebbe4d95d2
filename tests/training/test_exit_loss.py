import pytest
import torch
from reference import NUM_LAYERS, random_ids
from torch.nn import functional

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.training.data import LossBatch
from ulskip_cli.training.exit_loss import depth_weighted_mean, exit_losses

EXITS = (1, 3, 4, NUM_LAYERS)


def batch(rows=3, length=5):
    """Prompts padded on the left, responses on the right."""
    prompt, response = random_ids(rows, 7), random_ids(rows, length, seed=1)
    mask, labels = torch.ones_like(prompt), response.clone()
    mask[0, :3] = 0
    labels[1, 3:] = -100
    return LossBatch(prompt, mask, response, labels)


def cross_entropy(logits, labels):
    return functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )


def losses_of(model, inputs, exits=EXITS):
    return dict(exit_losses(model, LayerwiseModel(model), exits, inputs, cross_entropy))


def stepwise(model, depth, inputs):
    """The loss when tokens are decoded one by one through the first layers alone, over the prompt's
    whole cache.
    """
    mask, response = inputs.prompt_mask, inputs.response_ids
    view = model if depth == NUM_LAYERS else shallow_view.shallow_view(model, range(depth))
    cache = shallow_view.new_cache(model)
    logits = [
        shallow_view.forward_with_cache(model, inputs.prompt_ids, mask, cache, last_only=True)
    ]
    shallow_view.prune_cache(cache, range(depth))
    for i in range(response.shape[1] - 1):
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], 1)
        logits.append(shallow_view.forward_with_cache(view, response[:, i : i + 1], mask, cache))
    return cross_entropy(torch.cat(logits, 1), inputs.labels)


def test_the_loss_of_every_exit_is_that_of_decoding_through_so_many_layers(model):
    inputs = batch()
    losses = losses_of(model, inputs)
    assert tuple(losses) == EXITS
    for depth, loss in losses.items():
        torch.testing.assert_close(loss, stepwise(model, depth, inputs), rtol=1e-4, atol=1e-4)


def test_a_response_of_one_token_is_the_prompts_own(llama):
    inputs = batch(length=1)
    inputs.labels[:] = inputs.response_ids
    losses = losses_of(llama, inputs)
    assert set(losses) == set(EXITS)
    torch.testing.assert_close(losses[1], stepwise(llama, 1, inputs))
    torch.testing.assert_close(losses[1], losses[NUM_LAYERS])


@pytest.mark.parametrize("exits", [(1, 2), EXITS])
def test_deep_exits_weigh_more(llama, exits):
    inputs = batch()
    losses = losses_of(llama, inputs, exits)
    expected = sum(depth * loss for depth, loss in losses.items()) / sum(exits)
    torch.testing.assert_close(depth_weighted_mean(iter(losses.items())), expected)


def test_gradients_are_those_of_plain_loops(llama):
    inputs, gradients = batch(), []
    for total in (
        lambda: depth_weighted_mean(
            exit_losses(llama, LayerwiseModel(llama), EXITS, inputs, cross_entropy)
        ),
        lambda: sum(depth * stepwise(llama, depth, inputs) for depth in EXITS) / sum(EXITS),
    ):
        llama.zero_grad()
        total().backward()
        gradients.append([parameter.grad.clone() for parameter in llama.parameters()])
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-4)
    layers = llama.model.layers
    assert layers[NUM_LAYERS - 1].self_attn.k_proj.weight.grad.abs().sum() > 0
