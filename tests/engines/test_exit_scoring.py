import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from reference import NUM_LAYERS, random_ids

from ulskip_cli.core.exit_rule import Confidence, ExitRule
from ulskip_cli.engines.early_exit import (
    LOGIT_CONFIDENCES,
    cosine,
    exit_logits,
    hidden_states,
    softmax_diff,
    softmax_max,
)
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import encode_prompt

THRESHOLDS = {"softmax_diff": 0.12, "softmax_max": 0.25, "cosine": 0.85}


def test_confidences_match_their_definitions():
    logits = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]]).log().clamp(min=-50)
    torch.testing.assert_close(softmax_max(logits), torch.tensor([0.6, 1.0]))
    torch.testing.assert_close(softmax_diff(logits), torch.tensor([0.3, 1.0]))
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 2.0]])
    torch.testing.assert_close(cosine(one, other), torch.tensor([1 / math.sqrt(2)]))
    torch.testing.assert_close(cosine(one, one), torch.tensor([1.0]))


def test_confidences_are_computed_in_float32():
    logits = torch.tensor([[1.0, 1.001, -3.0]]).bfloat16()
    for read in LOGIT_CONFIDENCES.values():
        assert read(logits).dtype == torch.float32


def batch(rows=3):
    prompt, response = random_ids(rows, 7), random_ids(rows, 6, seed=1)
    prompt_mask, mask = torch.ones_like(prompt), torch.ones_like(response)
    if rows > 1:
        prompt_mask[0, :3] = 0
        mask[1, 4:] = 0
    return prompt, prompt_mask, response, mask


def scored(model, rule, inputs):
    prompt, prompt_mask, response, mask = inputs
    with torch.no_grad():
        return exit_logits(
            model,
            LayerwiseModel(model),
            rule,
            encode_prompt(model, prompt, prompt_mask),
            response,
            mask,
        )


def of_depth(model, depth, inputs):
    """Logits of a response through the first layers alone, over the full prompt's keys."""
    prompt, prompt_mask, response, mask = inputs
    view = model if depth == NUM_LAYERS else shallow_view.shallow_view(model, range(depth))
    cache = shallow_view.new_cache(model)
    with torch.no_grad():
        first = shallow_view.forward_with_cache(model, prompt, prompt_mask, cache, last_only=True)
        shallow_view.prune_cache(cache, range(depth))
        whole = torch.cat([prompt_mask, mask[:, :-1]], 1)
        return torch.cat(
            [first, shallow_view.forward_with_cache(view, response[:, :-1], whole, cache)], 1
        )


def test_hidden_states_do_not_change_the_prompt(model):
    prompt, prompt_mask, response, mask = batch()
    with torch.no_grad():
        encoded = encode_prompt(model, prompt, prompt_mask)
        runs = [
            [h for _, h in hidden_states(model, LayerwiseModel(model), encoded, response, mask)]
            for _ in range(2)
        ]
    assert encoded.cache.get_seq_length() == 7
    assert len(runs[0]) == NUM_LAYERS
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", get_args(Confidence))
def test_an_unreachable_threshold_gives_full_depth_and_a_trivial_one_the_first_exit(model, kind):
    inputs = batch()
    kept = inputs[3].bool()
    for threshold, depth in ((2.0, NUM_LAYERS), (-2.0, 4 if kind == "cosine" else 2)):
        rule = ExitRule(NUM_LAYERS, NUM_LAYERS, kind, threshold, 8, min_exit=2, every=2)
        logits, depths = scored(model, rule, inputs)
        assert (depths == depth).all()
        torch.testing.assert_close(
            logits[kept], of_depth(model, depth, inputs)[kept], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", get_args(Confidence))
def test_every_token_is_predicted_at_its_exit_depth(llama, kind):
    inputs = batch()
    rule = ExitRule(NUM_LAYERS, NUM_LAYERS, kind, THRESHOLDS[kind], 4)
    logits, depths = scored(llama, rule, inputs)
    by_depth = {depth: of_depth(llama, depth, inputs) for depth in range(1, NUM_LAYERS + 1)}
    assert len(depths.unique()) > 1
    assert (depths == depths[:1]).all()  # a batch leaves together
    for step in range(5):
        at = inputs[3][:, step + 1].bool()
        expected = by_depth[int(depths[0, step])][:, step + 1]
        torch.testing.assert_close(logits[at, step + 1], expected[at], rtol=1e-4, atol=1e-4)


def test_sequences_alone_exit_no_later_than_in_a_batch(llama):
    rule = ExitRule(NUM_LAYERS, NUM_LAYERS, "softmax_max", THRESHOLDS["softmax_max"], 4)
    inputs = batch()
    together = scored(llama, rule, inputs)[1]
    alone = torch.cat(
        [scored(llama, rule, [one[i : i + 1] for one in inputs])[1] for i in range(3)]
    )
    counts = inputs[3][:, 1:].bool()
    assert (
        alone.masked_fill(~counts, 0).amax(0) <= together[0]
    ).all()  # never before the last of them


def test_padding_delays_no_exit(llama):
    rule = ExitRule(NUM_LAYERS, NUM_LAYERS, "softmax_max", THRESHOLDS["softmax_max"], 4)
    inputs = batch(2)  # the second response is shorter
    depths = scored(llama, rule, inputs)[1]
    alone = scored(llama, rule, [one[:1] for one in inputs])[1]
    behind = ~inputs[3][1, 1:].bool()
    assert behind.any()
    assert (depths[0, behind] == alone[0, behind]).all()
    assert (depths[0, behind] < NUM_LAYERS).any()


def test_a_response_of_one_token_is_predicted_by_the_prompt(llama):
    prompt, prompt_mask, response, mask = batch()
    rule = ExitRule(NUM_LAYERS, NUM_LAYERS, "softmax_max", 0.5, 4)
    logits, depths = scored(llama, rule, (prompt, prompt_mask, response[:, :1], mask[:, :1]))
    assert logits.shape[:2] == (3, 1) and depths.shape == (3, 0)
    assert replace(rule, threshold=0.1).threshold_at(0) == pytest.approx(0.1)
