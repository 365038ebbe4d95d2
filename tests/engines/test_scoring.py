import math
from typing import get_args

import pytest
import torch
from reference import NUM_LAYERS, build_model, decoder_for, plan_for, random_ids, reference_logits

from ulskip_cli.core.schedule import Confidence, ExitRule
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.early_exit import confidence_of, exit_logits
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import encode_prompt
from ulskip_cli.tasks.encoding import EncodedExample

THRESHOLDS = {"softmax_diff": 0.12, "softmax_max": 0.25, "cosine": 0.85}


def test_confidences_match_their_definitions():
    logits = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]]).log().clamp(min=-50)
    torch.testing.assert_close(
        confidence_of("softmax_max", logits, None, logits), torch.tensor([0.6, 1.0])
    )
    torch.testing.assert_close(
        confidence_of("softmax_diff", logits, None, logits), torch.tensor([0.3, 1.0])
    )
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 2.0]])
    torch.testing.assert_close(
        confidence_of("cosine", one, other, None), torch.tensor([1 / math.sqrt(2)])
    )
    torch.testing.assert_close(confidence_of("cosine", one, one, None), torch.tensor([1.0]))


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


def test_padding_does_not_exceed_the_position_table():
    model = build_model("gpt2")
    assert model.config.n_positions == 128
    long, short = EncodedExample([5] * 120, [6] * 8), EncodedExample([7] * 20, [8] * 60)
    decoder = decoder_for(model, "ratio=2")
    alone = [ReferenceLoss([one], BatchSize(1), 0).of(decoder) for one in (long, short)]
    expected = (8 * alone[0] + 60 * alone[1]) / 68
    assert ReferenceLoss([long, short], BatchSize(2), 0).of(decoder) == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_loss_is_the_mean_over_all_reference_tokens(llama, tokenizer, batch_size):
    texts = [("the cat", " der Hund"), ("a b c d", " im"), ("mat", " Haus im Haus")]
    llama.resize_token_embeddings(len(tokenizer))
    examples = [EncodedExample(*(tokenizer(text)["input_ids"] for text in pair)) for pair in texts]
    plan = plan_for("ratio=2")
    total, count = 0.0, 0
    for one in examples:
        ids, start = torch.tensor([one.prompt_ids + one.response_ids]), len(one.prompt_ids)
        logits = reference_logits(llama, ids, torch.ones_like(ids), start, plan.kept_layers)[
            0, start - 1 : -1
        ]
        total += torch.nn.functional.cross_entropy(
            logits, torch.tensor(one.response_ids), reduction="sum"
        ).item()
        count += len(one.response_ids)
    loss = ReferenceLoss(examples, BatchSize(batch_size), 0).of(Decoder(llama, plan))
    assert loss == pytest.approx(total / count, rel=1e-5)
