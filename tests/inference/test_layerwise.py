import pytest
import torch
from reference import (
    NUM_LAYERS,
    decoder_for,
    in_engine,
    layer_states,
    plan_for,
    request_for,
    unchanged,
)

from ulskip_cli.engines.base import Prompts
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.layerwise import prompt_model_of, state_similarity
from ulskip_cli.inference.shallow_view import forward_with_cache, shallow_view
from ulskip_cli.inference.teacher_forcing import encode_prompt

TEXTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [15, 16]]


def test_similarity_is_the_mean_cosine_of_the_states_at_two_depths(model):
    texts = [layer_states(model, torch.tensor([text])) for text in TEXTS]
    states = [torch.cat([text[i] for text in texts], 1) for i in range(NUM_LAYERS + 1)]
    expected = [
        [float(torch.cosine_similarity(first, second, dim=-1).mean()) for first in states]
        for second in states
    ]
    with unchanged(model):
        found = state_similarity(model, TEXTS, 2)
    assert all(
        row == pytest.approx(wanted, abs=2e-5) for row, wanted in zip(found, expected, strict=True)
    )


@torch.inference_mode()
def test_layers_above_the_first_get_keys_and_values_of_the_state_behind_these(model):
    count, prompts = 2, Prompts.from_token_ids(TEXTS, 0)
    ids, mask = prompts.input_ids, prompts.attention_mask
    with unchanged(model):
        found = encode_prompt(prompt_model_of(model, f"first:{count}"), ids, mask)
    cache = kv_cache.new_cache(model)
    for layer in range(NUM_LAYERS):
        # a model in which this layer follows the first ones
        view = shallow_view(model, sorted({*range(count), layer}))
        of_view = kv_cache.new_cache(view)
        forward_with_cache(view, ids[:, :-1], mask[:, :-1], of_view)
        cache.layers[layer] = of_view.layers[min(layer, count)]
    logits = forward_with_cache(model, ids[:, -1:], mask, cache)
    torch.testing.assert_close(found.first_logits, logits)
    for layer, wanted in zip(found.cache.layers, cache.layers, strict=True):
        read = mask.bool()[:, -wanted.keys.shape[2] :, None, None]
        for name in ("keys", "values"):
            states = (getattr(held, name).transpose(1, 2) * read for held in (layer, wanted))
            torch.testing.assert_close(*states)


def test_the_first_of_all_layers_are_all_of_them(model):
    assert prompt_model_of(model, f"first:{NUM_LAYERS}") is model
    wanted = plan_for("ratio=2").as_dict()
    assert plan_for("ratio=2", f"prompt_layers=first:{NUM_LAYERS}").as_dict() == wanted


def test_engines_answer_alike_after_the_first_layers(model):
    decoder = decoder_for(model, "ratio=2", "prompt_layers=first:4")
    answers = [
        [
            output.token_ids
            for _, output in in_engine(decoder, name).answer_all(
                TEXTS, request_for(model, 5), BatchSize(2)
            )
        ]
        for name in ("torch", "transformers")
    ]
    assert answers[0] == answers[1]
