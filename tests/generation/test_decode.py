import pytest
import torch
from reference import NUM_LAYERS, random_ids

from ulskip_cli.config import compose
from ulskip_cli.generation.decode import Decoder, generate_texts
from ulskip_cli.models.facts import ModelFacts
from ulskip_cli.plan import make_plan
from ulskip_cli.schema import DecodingConfig

GREEDY = DecodingConfig(name="greedy", max_new_tokens=8)


def decoder_for(model, *overrides):
    return Decoder(model, make_plan(compose(list(overrides)), ModelFacts(NUM_LAYERS, None, None)))


def test_counts_leave_out_padding_and_what_follows_the_end(llama):
    ids, mask = random_ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    decoder = decoder_for(llama, "ratio=2")
    free = decoder.generate(ids, mask, GREEDY, pad=0)
    end = free.token_ids[0][3]
    llama.generation_config.eos_token_id = end
    stopped = decoder.generate(ids, mask, GREEDY, pad=0)
    first = stopped.token_ids[0]
    assert first == free.token_ids[0][: free.token_ids[0].index(end) + 1]
    assert stopped.hit_limit[0] is False
    assert stopped.prompt_tokens == 10
    assert stopped.generated_tokens == sum(map(len, stopped.token_ids))
    assert stopped.decoded_tokens == stopped.generated_tokens - 2


def test_a_forced_length_goes_past_the_end_token(llama):
    ids = random_ids(1, 6)
    decoder = decoder_for(llama)
    llama.generation_config.eos_token_id = decoder.generate(ids, torch.ones_like(ids), GREEDY, pad=0).token_ids[0][0]
    assert len(decoder.generate(ids, torch.ones_like(ids), GREEDY, pad=0).token_ids[0]) == 1
    assert len(decoder.generate(ids, torch.ones_like(ids), GREEDY, pad=0, forced_length=5).token_ids[0]) == 5


def test_beams_count_their_prompt_once(llama):
    ids = random_ids(2, 6)
    output = decoder_for(llama).generate(
        ids, torch.ones_like(ids), DecodingConfig(name="b", num_beams=3, max_new_tokens=4), pad=0
    )
    assert output.prompt_tokens == 12
    assert len(output.token_ids) == 2


def test_phases_are_timed_in_order(llama):
    ids = random_ids(1, 6)
    output = decoder_for(llama).generate(ids, torch.ones_like(ids), GREEDY, pad=0)
    assert 0 < output.prefill_seconds <= output.first_token_seconds < output.total_seconds


def test_kv_bytes_are_exact(llama):
    ids = random_ids(2, 6)
    output = decoder_for(llama, "ratio=2").generate(ids, torch.ones_like(ids), GREEDY, pad=0)
    assert output.prompt_kv_bytes == NUM_LAYERS * 2 * (2 * 6) * 2 * 8 * 4  # layers, k and v, tokens, heads, head size, float32
    assert output.kept_kv_bytes * 2 == output.prompt_kv_bytes


def test_a_checkpoints_sampling_advice_is_ignored(llama):
    ids, decoder = random_ids(1, 6), decoder_for(llama, "ratio=2")
    plain = decoder.generate(ids, torch.ones_like(ids), GREEDY, pad=0).token_ids
    llama.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, num_beams=2)
    assert decoder.generate(ids, torch.ones_like(ids), GREEDY, pad=0).token_ids == plain


@pytest.mark.parametrize("prompt_layers", ["all", "kept"])
def test_batches_and_order_change_nothing(llama, tokenizer, prompt_layers):
    llama.resize_token_embeddings(len(tokenizer))
    decoder = decoder_for(llama, "ratio=2", f"prompt_layers={prompt_layers}")
    prompts = ["a", "the cat sat on the mat", "der Hund", "a b c d e f", "mat"]

    def answers(batch_size):
        found = {}
        for positions, output in generate_texts(decoder, tokenizer, prompts, GREEDY, batch_size):
            found |= dict(zip(positions, output.token_ids, strict=True))
        return [found[i] for i in range(len(prompts))]

    assert answers(1) == answers(2) == answers(8)
    assert answers(8) == answers(8)
