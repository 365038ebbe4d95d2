"""Speculative decoding: exactness against plain decoding, and drafters."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import MANY_ENDS, batch, count_near_ties, generate, in_engine, stack_of
from transformers import LlamaConfig, LlamaForCausalLM

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines.base import DraftStats, Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.loop import look_up
from ulskip_cli.engines.torch.session import TorchSession
from ulskip_cli.strategies.plan import Schedule

LENGTH = 12
DRAFTED = DecodingConfig(name="self_speculative", draft_tokens=4)
KEPT, DRAFTS = (0, 2, 5), ["layers", "ngram"]


def decoder_for(model, kept=None):
    depth = model.config.num_hidden_layers
    return Decoder(Views.of(model, Schedule.from_layers(depth, kept or range(depth))))


@pytest.mark.parametrize("kept", [None, KEPT], ids=["ngram", "layers"])
def test_models_that_cannot_check_drafts_are_refused(llama, kept):
    decoder = decoder_for(llama, kept)
    llama.config.rope_parameters |= {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(UsageError, match=r"depend on the length.*draft_tokens=0"):
        generate(decoder, *batch(False), LENGTH, DRAFTED)
    llama.config.rope_parameters |= {"rope_type": "default"}
    llama.config._attn_implementation = "flex_attention"
    with pytest.raises(UsageError, match=r"flex_attention.*decoding\.draft_tokens"):
        generate(decoder_for(llama, kept), *batch(False), LENGTH, DRAFTED)


def agreeing(model, kept):
    """Scale the other layers down, so that the kept ones predict many tokens, but not all."""
    with torch.no_grad():
        for i, layer in enumerate(stack_of(model)):
            for name, weight in layer.named_parameters() if i not in kept else ():
                if "post_" in name and model.config.model_type == "gemma2":  # scales what is added
                    weight.fill_(-0.8)
                elif weight.dim() > 1:
                    weight.mul_(0.5)
    return model


def test_tokens_equal_those_of_the_full_models_generate(model):
    decoder, drafts, near_ties = decoder_for(agreeing(model, KEPT), KEPT), DraftStats(), 0
    full = in_engine(decoder_for(model), "transformers")
    for ends, padded in ((None, False), (None, True), (MANY_ENDS, True)):
        model.generation_config.eos_token_id = ends
        ids, mask = batch(padded)
        expected = generate(full, ids, mask, LENGTH).token_ids
        for count, i in product((1, 4, 10), range(len(ids))):
            row = slice(i, i + 1)
            drafted = DRAFTED.replace(draft_tokens=count)
            output = generate(decoder, ids[row], mask[row], LENGTH, drafted)
            assert output.engine == "torch"
            drafts += output.drafts
            texts = ids[row], mask[row], output.token_ids, expected[row]
            near_ties += count_near_ties(model, *texts)
    assert near_ties <= 3  # a sequence may be the same one three times
    assert 0 < drafts.accepted < drafts.drafted  # some drafts were accepted and some rejected
    assert drafts.gained > drafts.checks


class Rubbish:
    """A drafter that proposes any number of any tokens, which its seed decides."""

    def __init__(self, seed, vocab_size):
        self.generator, self.vocab_size = torch.Generator().manual_seed(seed), vocab_size

    def __call__(self, ids, most):
        length = int(torch.randint(most + 1, (), generator=self.generator))
        return torch.randint(self.vocab_size, (length,), generator=self.generator)


def tiny(seed, vocab_size, width, spread):
    """Make a random model of 3 layers."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": vocab_size, "hidden_size": width, "intermediate_size": width}
    sizes |= {"num_hidden_layers": 3, "num_attention_heads": 2, "initializer_range": spread}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**sizes, **ends)).eval()


@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 999), vocab_size=st.integers(4, 12))
def test_any_drafter_gives_the_tokens_of_plain_greedy_decoding(data, seed, vocab_size):
    model = tiny(seed, vocab_size, 8, 0.8).double()
    kept = data.draw(st.sampled_from([(0, 2), (0, 1), (1, 2), (1,)]))
    model.generation_config.eos_token_id = data.draw(st.sampled_from([None, 1, [2, 3]]))
    ids = torch.randint(1, vocab_size, (1, 6))
    mask = torch.ones_like(ids)
    mask[0, : data.draw(st.integers(0, 4))] = 0
    length = data.draw(st.integers(1, 30))
    count, draft = data.draw(st.tuples(st.sampled_from([1, 3, 10]), st.sampled_from(DRAFTS)))
    decoding = DecodingConfig(draft_tokens=count, draft=draft)
    plain = generate(decoder_for(model), ids * mask, mask, length)
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            drafter = Rubbish(seed, vocab_size)
            patch.setattr(TorchSession, "drafter", lambda self, request: drafter)
        drafted = generate(decoder_for(model, kept), ids * mask, mask, length, decoding)
    assert drafted.token_ids == plain.token_ids
    assert drafted.hit_max_length == plain.hit_max_length


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 9))
def test_a_look_up_is_the_continuation_of_the_longest_match(ids, most):
    drafts = look_up(torch.tensor([ids]), most).tolist()
    lengths = {
        length: end
        for length in range(2, most + 1)
        for end in reversed(range(length, len(ids)))
        if ids[end - length : end] == ids[len(ids) - length :]
    }
    longest = max(lengths, default=0)
    start = lengths.get(longest, len(ids))
    assert drafts == ids[start : start + longest]
