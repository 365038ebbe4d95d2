from functools import partial

import pytest
import torch
from reference import (
    NUM_LAYERS,
    build_model,
    decoder_for,
    reference_response,
    request_for,
    training_batch,
)

from ulskip_cli.core.schedule import ExitRule
from ulskip_cli.engines import scoring
from ulskip_cli.engines.sampling import confidence_of
from ulskip_cli.engines.scoring import ForcedTexts, exit_logits
from ulskip_cli.engines.torch import torch_session
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import encode_prompt
from ulskip_cli.tasks.encoding import EncodedExample


def forced(examples, batch_size):
    prompts = [example.prompt_ids for example in examples]
    references = [example.response_ids for example in examples]
    return ForcedTexts(prompts, references, BatchSize(batch_size), 0)


def test_the_confidence_is_the_gap_of_the_two_largest_probabilities():
    logits = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]]).log().clamp(min=-50)
    torch.testing.assert_close(confidence_of(logits), torch.tensor([0.3, 1.0]))


def test_every_token_is_predicted_at_its_exit_depth(llama):
    inputs = training_batch()
    rule = ExitRule(NUM_LAYERS, NUM_LAYERS, 0.05, 4)
    labelled = inputs["labels"] != -100
    with torch.no_grad():
        prompt = encode_prompt(llama, inputs["prompt_ids"], inputs["prompt_mask"])
        texts = prompt, inputs["response_ids"], labelled.long()
        logits, depths = exit_logits(LayerwiseModel(llama), rule, *texts)
    assert len(depths.unique()) > 1
    assert (depths == depths[:1]).all()  # a batch leaves together
    for step, depth in enumerate(depths[0].tolist(), start=1):
        at = labelled[:, step]
        expected = reference_response(llama, inputs, range(depth))[at, step]
        torch.testing.assert_close(logits[at, step], expected, rtol=1e-4, atol=1e-4)


def test_padding_does_not_exceed_the_position_table():
    model = build_model("gpt2")
    assert model.config.n_positions == 128
    long, short = EncodedExample([5] * 120, [6] * 8), EncodedExample([7] * 20, [8] * 60)
    decoder = decoder_for(model, "ratio=2")
    alone = [forced([one], 1).scores(decoder).decode_loss for one in (long, short)]
    expected = (8 * alone[0] + 60 * alone[1]) / 68
    together = forced([long, short], 2).scores(decoder).decode_loss
    assert together == pytest.approx(expected, rel=1e-4)


def test_a_schedule_uses_the_prompts_of_the_one_before(spy, llama):
    examples = [EncodedExample([5, 6, 7], [8, 9]), EncodedExample([10], [11])]
    decoders = [decoder_for(llama, ratio) for ratio in ("ratio=2", "ratio=3")]
    alone = [forced(examples, 1).scores(decoder) for decoder in decoders]
    encode, texts = spy(scoring, "encode_prompt"), forced(examples, 1)
    assert [texts.scores(decoder) for decoder in decoders] == alone
    assert encode.call_count == 2
    texts.scores(decoder_for(llama, "ratio=2", "prompt_layers=kept"))
    assert encode.call_count == 4


@pytest.mark.parametrize(
    "options", [["prompt_layers=kept"], ["strategy=early_exit", "strategy.threshold=0.05"]]
)
@pytest.mark.parametrize(("size", "encoded"), [(2, 0), (1, 2)])
def test_prompts_of_generated_answers_are_not_encoded_again(
    monkeypatch, spy, llama, options, size, encoded
):
    monkeypatch.setattr(torch_session, "PROMPT_TOKENS", {torch.float32: 0})  # one pass reads all
    examples = [EncodedExample([5 + i] * (4 - i), [8, 9]) for i in range(3)]
    decoder, texts = decoder_for(llama, "ratio=2", *options), forced(examples, size)
    alone = forced(examples, size).scores(decoder)
    hold, request = partial(texts.hold, decoder.views.prompt_model), request_for(llama, 4)
    assert list(decoder.answer_all(texts.prompts, request, BatchSize(2), on_prompts=hold))
    encode = spy(scoring, "encode_prompt")
    scores = texts.scores(decoder)
    assert (scores.decode_loss, scores.exits) == (alone.decode_loss, alone.exits)
    assert encode.call_count == encoded
