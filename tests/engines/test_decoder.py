import pytest
import torch
from reference import (
    GREEDY,
    NUM_LAYERS,
    decoder_for,
    generate,
    in_engine,
    random_ids,
    request_for,
)
from transformers import FalconConfig, FalconForCausalLM

from ulskip_cli.core.answer import Ends, Request
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.engines.base import Prompts, Watch
from ulskip_cli.inference.batching import BatchSize

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]


def talking(llama, tokenizer, texts, length, *overrides):
    """Return a decoder, the encoded texts, and a function that makes requests of stop strings."""
    llama.resize_token_embeddings(len(tokenizer))
    pad = tokenizer.pad_token_id
    prompts = Prompts.from_token_ids(tokenizer(texts)["input_ids"], pad)

    def request(*stops, **options):
        decoding = GREEDY.replace(stop=stops, **options)
        return Request(decoding, length, ends=Ends.of(llama, pad, tokenizer))

    return decoder_for(llama, *overrides), prompts, request


def collected(decoder, prompts, decoding, batch_size, seed=0, on_tokens=lambda done, tokens: None):
    found = {}
    request = request_for(decoder.views.model, 8, decoding, seed=seed)
    for positions, output in decoder.answer_all(prompts, request, BatchSize(batch_size), on_tokens):
        found |= dict(zip(positions, output.token_ids, strict=True))
    return [found[i] for i in range(len(prompts))]


def test_counts_exclude_padding_and_tokens_after_eos(llama):
    ids, mask = random_ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    decoder = decoder_for(llama, "ratio=2")
    free = generate(decoder, ids, mask, 8)
    end = free.token_ids[0][3]
    llama.generation_config.eos_token_id = end
    stopped = generate(decoder, ids, mask, 8)
    first = stopped.token_ids[0]
    assert first == free.token_ids[0][: free.token_ids[0].index(end) + 1]
    assert stopped.hit_max_length[0] is False
    assert stopped.prompt_tokens == 10
    assert stopped.generated_tokens == sum(map(len, stopped.token_ids))
    assert stopped.decoded_tokens == stopped.generated_tokens - 2
    # layers, k and v, positions, heads, head size, bytes of float32
    assert stopped.prompt_kv_bytes == NUM_LAYERS * 2 * (2 * 6) * 2 * 8 * 4
    assert stopped.kept_kv_bytes * 2 == stopped.prompt_kv_bytes


@pytest.mark.parametrize("engine", ["torch", "transformers"])
def test_a_checkpoints_sampling_defaults_are_ignored(llama, engine):
    decoder = in_engine(decoder_for(llama, "ratio=2"), engine)
    plain = collected(decoder, PROMPTS, GREEDY, 1)
    sampled = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "num_beams": 2}
    other = {"suppress_tokens": plain[0][:1], "return_dict_in_generate": True}
    llama.generation_config.update(**sampled, **other)
    assert collected(decoder, PROMPTS, GREEDY, 1) == plain


def test_sampling_depends_on_the_seed(llama):
    decoder = decoder_for(llama, "ratio=2")
    sampled = DecodingConfig(name="s", do_sample=True, temperature=2.0)
    one, again, other = (collected(decoder, PROMPTS, sampled, 2, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert one != collected(decoder, PROMPTS, GREEDY, 2)
    cold = DecodingConfig(name="s", do_sample=True, top_k=1)
    assert collected(decoder, PROMPTS, cold, 2) == collected(decoder, PROMPTS, GREEDY, 2)


@pytest.mark.parametrize("options", [{}, {"draft_tokens": 3, "draft": "ngram"}])
@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_a_stop_string_ends_an_answer(llama, tokenizer, engine, options):
    if engine == "transformers" and options:
        pytest.skip("transformers has no drafts")
    schedule, steps = "strategy=full" if options else "ratio=2", []
    decoder, prompts, request = talking(llama, tokenizer, ["the cat"], 40, schedule)
    decoder = in_engine(decoder, engine)
    (free,) = decoder.generate(prompts, request()).token_ids
    pieces = [tokenizer.decode([token]) for token in free]
    at = next(i for i, piece in enumerate(pieces) if i and piece.strip() and piece.isascii())
    stopping = request(pieces[at], **options)
    stopped = decoder.generate(prompts, stopping, Watch(on_step=steps.append))
    (row,) = stopped.token_ids
    assert len(row) <= at + 1 and row == free[: len(row)] and not stopped.hit_max_length[0]
    assert pieces[at] in tokenizer.decode(row)
    if engine == "auto":  # it looks every few steps
        assert steps[-1] < 40


def test_a_sequence_that_has_stopped_does_not_end_the_others(llama, tokenizer):
    texts = ["the cat", "der Hund", "a b"]
    decoder, prompts, request = talking(llama, tokenizer, texts, 40, "ratio=2")
    free = decoder.generate(prompts, request()).token_ids
    texts = tokenizer.batch_decode(free)
    stop, ended = next(
        (text[start : start + 2], row)
        for row, text in enumerate(texts)
        for start in range(len(text) - 1)
        if "\ufffd" not in text[start : start + 2]
        and sum(text[start : start + 2] in other for other in texts) == 1
    )
    stopped = decoder.generate(prompts, request(stop)).token_ids
    assert [row == whole for row, whole in zip(stopped, free, strict=True)].count(False) == 1
    assert stopped[ended] == free[ended][: len(stopped[ended])]


def test_a_stop_string_that_begins_in_the_prompt_does_not_end_an_answer(llama, tokenizer):
    decoder, prompts, request = talking(llama, tokenizer, ["the cat"], 8, "ratio=2")
    (free,) = decoder.generate(prompts, request()).token_ids
    stop = tokenizer.decode([prompts.input_ids[0, -1], free[0]])
    assert stop not in tokenizer.decode(free)
    assert decoder.generate(prompts, request(stop)).token_ids == [free]


def test_a_padded_batch_of_a_model_with_alibi_in_its_layers_equals_its_prompts_alone():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": NUM_LAYERS, "hidden_size": 32, "num_attention_heads": 4}
    ends = {"vocab_size": 101, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    falcon = FalconForCausalLM(FalconConfig(**sizes, **ends, alibi=True, initializer_range=0.3))
    decoder = decoder_for(falcon.eval(), "ratio=2")
    alone, together = (collected(decoder, PROMPTS, GREEDY, size) for size in (1, 4))
    assert alone == together
    assert alone == collected(in_engine(decoder, "transformers"), PROMPTS, GREEDY, 1)


def test_tokens_are_reported_as_they_are_generated(llama):
    decoder, reports = decoder_for(llama, "ratio=2"), []
    collected(decoder, PROMPTS, GREEDY, 2, on_tokens=lambda *report: reports.append(report))
    assert reports[-1] == (4, 32)
    assert reports[0] == (0, 2)
    assert [tokens for _, tokens in reports] == sorted(tokens for _, tokens in reports)
