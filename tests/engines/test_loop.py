import sys
from itertools import product

import pytest
import torch
from reference import (
    GREEDY,
    MANY_ENDS,
    NUM_LAYERS,
    batch,
    count_near_ties,
    decoder_for,
    generate,
    in_engine,
)
from transformers import MinNewTokensLengthLogitsProcessor

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.engines import loop
from ulskip_cli.engines.sampling import InvalidLogitsError, TokenSampler
from ulskip_cli.engines.torch.torch_session import TorchSession

LENGTH, CPU = 14, torch.device("cpu")
SAMPLED = GREEDY.replace(do_sample=True, temperature=0.8, top_p=0.9, top_k=50)


def compared(decoder, decoding=GREEDY):
    """Generate by both engines; count the differing sequences, each of which is a near-tie."""
    near_ties, views, model = 0, decoder.views, decoder.views.prompt_model
    kept = {stage.first_step: stage.places for stage in views.stages}
    kept = kept if model is views.model else range(NUM_LAYERS)
    for ends, padded in product((None, MANY_ENDS), (True, False)):
        views.model.generation_config.eos_token_id = model.generation_config.eos_token_id = ends
        ids, mask = batch(padded)
        fast, slow = (
            generate(in_engine(decoder, name), ids, mask, LENGTH, decoding, seed=5)
            for name in ("auto", "transformers")
        )
        assert (fast.engine, slow.engine) == ("torch", "transformers")
        assert fast.kept_kv_bytes == slow.kept_kv_bytes
        near_ties += count_near_ties(model, ids, mask, fast.token_ids, slow.token_ids, kept)
    return near_ties


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=full",),
        ("ratio=2",),
        ("ratio=2", "prompt_layers=kept"),
        ("ratio=2", "strategy=skip_decode", "strategy.horizon=8"),
    ],
    ids=" ".join,
)
def test_tokens_equal_those_of_transformers_generate(model, overrides):
    assert compared(decoder_for(model, *overrides)) <= 1  # of 20 sequences


def test_sampling_is_that_of_transformers(llama):
    assert compared(decoder_for(llama, "ratio=2"), SAMPLED) == 0


def test_finished_sequences_are_dropped_from_the_batch(llama, spy):
    decoder, (ids, mask) = decoder_for(llama, "ratio=2"), batch(True)
    free = generate(decoder, ids, mask, LENGTH).token_ids
    llama.generation_config.eos_token_id = [row[2] for row in free[:3]]
    choose = spy(TorchSession, "choose")
    generate(decoder, ids, mask, LENGTH)
    sizes = [len(call.args[1]) for call in choose.call_args_list]
    assert sizes[0] == 5 and sizes[-1] <= 2
    forced = generate(decoder, ids, mask, 6, fixed_length=True)
    assert {len(row) for row in forced.token_ids} == {6}


@pytest.mark.parametrize("ends", [[], [3], [0, 8]])
def test_eos_is_suppressed_as_by_transformers(ends):
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.ones(2, 5, dtype=torch.long)
    wanted = MinNewTokensLengthLogitsProcessor(4, 2, ends)(ids, logits) if ends else logits.clone()
    assert torch.equal(TokenSampler(DecodingConfig(), ends, CPU).scores(ids, logits), wanted)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_choose_no_token(wrong):
    logits, ids = torch.tensor([[1.0, 2.0], [0.0, wrong]]), torch.ones(2, 3, dtype=torch.long)
    for decoding in (DecodingConfig(), DecodingConfig(do_sample=True)):
        with pytest.raises(InvalidLogitsError, match="finite"):
            TokenSampler(decoding, [], CPU)(ids, logits)


def test_a_peak_is_that_since_the_reset_and_counts_what_was_freed():
    size = 200_000_000
    loop.reset_peak(CPU)
    before = loop.peak_bytes(CPU)
    torch.ones(size // 4)
    peak = loop.peak_bytes(CPU)
    assert peak > before + size // 2
    loop.reset_peak(CPU)
    if sys.platform == "linux":  # no other system resets the peak
        assert loop.peak_bytes(CPU) < peak - size // 2
