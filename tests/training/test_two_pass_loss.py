from functools import partial

import pytest
import torch
from reference import (
    NUM_LAYERS,
    reference_divergence,
    reference_loss,
    reference_response,
    through,
    with_each,
)
from reference import training_batch as batch

from ulskip_cli.core.config_schema import LoraOptions
from ulskip_cli.core.schedule import Stage
from ulskip_cli.inference import kv_cache, shallow_view, teacher_forcing
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.training.data import LossBatch
from ulskip_cli.training.two_pass_loss import LossWeights, TwoPassLoss, merged_lora, with_lora

EVERY = tuple(range(NUM_LAYERS))
EXITS = (1, 3, 4, NUM_LAYERS)
SCHEDULES = [
    *map(through, (EVERY, (0, 2, 5), (0, 1, 2), (3, 4, 5))),  # full, unified, top and bottom skip
    (Stage(0, (0, 2, 4, 5)), Stage(2, (0, 4, 5)), Stage(3, (0, 5))),
]


def stepwise_exit(model, depth, inputs):
    """The summed cross-entropy if the first layers decode step by step from a pruned cache."""
    kept = tuple(range(depth))
    view = model if kept == EVERY else shallow_view.shallow_view(model, kept)
    cache, mask = kv_cache.new_cache(model), inputs["prompt_mask"]
    prompt, response = inputs["prompt_ids"], inputs["response_ids"]
    logits = [shallow_view.forward_with_cache(model, prompt, mask, cache, last_only=True)]
    kv_cache.prune_cache(cache, kept)
    for i in range(response.shape[1] - 1):
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], 1)
        logits.append(shallow_view.forward_with_cache(view, response[:, i : i + 1], mask, cache))
    losses = teacher_forcing.response_losses(torch.cat(logits, 1), response)
    return losses[inputs["labels"] != -100].sum()


@pytest.mark.parametrize(
    ("model", "stages"), with_each(SCHEDULES[::-1], "qwen2"), indirect=["model"]
)
def test_the_loss_is_that_of_an_uncached_reference(model, stages):
    inputs = batch()
    kept = {stage.first_step: stage.kept_layers for stage in stages}
    expected = reference_loss(model, inputs, kept)
    loss = TwoPassLoss(model).eval()(**inputs, stages=stages)["loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_its_parts_add_up(llama):
    inputs, kept = batch(), (0, 2, 5)
    weights = LossWeights(cross_entropy=0.5, distillation=2.0)
    loss = TwoPassLoss(llama, loss_weights=weights).eval()(**inputs, stages=through(kept))["loss"]
    expected = 0.5 * reference_loss(llama, inputs, kept)
    expected += 2.0 * reference_divergence(llama, inputs, kept)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_distillation_moves_the_student_alone(llama):
    weights, stages = LossWeights(cross_entropy=0.0, distillation=1.0), through((0, 2, 5))
    TwoPassLoss(llama, loss_weights=weights)(**batch(), stages=stages)["loss"].backward()
    gradients = [p.grad.clone() for p in llama.parameters()]
    llama.zero_grad()
    # The same loss towards logits that were computed before.
    inputs = LossBatch(**batch())
    prompt = teacher_forcing.encode_prompt(llama, inputs.prompt_ids, inputs.prompt_mask)
    views = shallow_view.stage_views(stages, EVERY, partial(shallow_view.shallow_view, llama))
    labelled = inputs.is_labelled
    student = teacher_forcing.predict_response(views, prompt, inputs.response_ids, labelled)
    teacher = reference_response(llama, batch(), EVERY)[labelled]
    student = student[labelled]
    teacher_forcing.divergence(teacher, student).div(len(student)).backward()
    assert sum(one.abs().sum() for one in gradients) > 0
    for own, parameter in zip(gradients, llama.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_mean_is_over_all_tokens_of_a_step(llama):
    module, inputs, stages = TwoPassLoss(llama).eval(), batch(), through((0, 5))
    count = (inputs["labels"] != -100).sum()
    split = 0
    for rows in (slice(0, 1), slice(1, 3)):
        part = {key: value[rows] for key, value in inputs.items()}
        split += module(**part, stages=stages, num_items_in_batch=count)["loss"]
    whole = module(**inputs, stages=stages)["loss"]
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)


def test_the_prompt_gets_gradients_through_its_cache(llama):
    inputs, kept = batch(), (0, 2, 5)
    inputs["labels"][:, 0] = -100  # the second pass alone
    TwoPassLoss(llama)(**inputs, stages=through(kept))["loss"].backward()
    assert llama.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0
    # skipped in decode, yet it made the prompt's keys
    assert llama.model.layers[1].mlp.up_proj.weight.grad.abs().sum() > 0


def test_probing_layers_draws_no_random_numbers(llama):
    for layer in llama.train().model.layers:
        layer.self_attn.attention_dropout = 0.5
    before = torch.get_rng_state()
    LayerwiseModel(llama)
    assert torch.equal(torch.get_rng_state(), before)


def adapted_from(model):
    adapted, _ = with_lora(model, range(NUM_LAYERS), LoraOptions(rank=2, alpha=4))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted


def test_lora_is_seen_through_views_saved_alone_and_merged(llama):
    module, inputs, kept = TwoPassLoss(adapted_from(llama)).eval(), batch(), (0, 2, 5)
    with_adapters = module(**inputs, stages=through(kept))["loss"]
    assert all("lora_" in name for name in module.state_dict())
    merged = merged_lora(module.model)
    assert merged.state_dict().keys() == llama.state_dict().keys()
    of_merged = TwoPassLoss(merged).eval()(**inputs, stages=through(kept))["loss"]
    torch.testing.assert_close(of_merged, with_adapters, rtol=1e-4, atol=1e-5)


def exit_losses(model, inputs, exits=EXITS):
    return dict(TwoPassLoss(model, exits=exits).exit_losses(LossBatch(**inputs)))


def test_the_loss_of_every_exit_is_that_of_decoding_through_so_many_layers(model):
    inputs = batch()
    losses = exit_losses(model, inputs)
    assert tuple(losses) == EXITS
    for depth, loss in losses.items():
        torch.testing.assert_close(loss, stepwise_exit(model, depth, inputs), rtol=1e-4, atol=1e-4)


def test_a_response_of_one_token_is_the_prompts_own(llama):
    inputs = batch()
    inputs = {**inputs, "response_ids": inputs["response_ids"][:, :1]}
    inputs["labels"] = inputs["response_ids"]
    losses = exit_losses(llama, inputs)
    assert set(losses) == set(EXITS)
    torch.testing.assert_close(losses[1], stepwise_exit(llama, 1, inputs))
    torch.testing.assert_close(losses[1], losses[NUM_LAYERS])


def test_deep_exits_weigh_more_and_gradients_are_those_of_plain_loops(llama):
    inputs, gradients, totals = batch(), [], []
    count = (inputs["labels"] != -100).sum()
    for total in (
        lambda: TwoPassLoss(llama, exits=EXITS)(**inputs)["loss"] * count,
        lambda: sum(depth * stepwise_exit(llama, depth, inputs) for depth in EXITS) / sum(EXITS),
    ):
        llama.zero_grad()
        totals.append(total())
        totals[-1].backward()
        gradients.append([parameter.grad.clone() for parameter in llama.parameters()])
    torch.testing.assert_close(*totals, rtol=1e-4, atol=1e-4)
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
