"""Speculative decoding: exactness against plain decoding, and drafters."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    MANY_ENDS,
    NATIVE_ARCHITECTURES,
    batch,
    build_model,
    count_near_ties,
    generate,
    random_adapter,
)
from transformers import LlamaConfig, LlamaForCausalLM

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import Schedule
from ulskip_cli.engines.base import DraftStats, Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.loop import LookUp
from ulskip_cli.engines.torch.drafts import MOST_DRAFTS, DraftLength
from ulskip_cli.engines.torch.torch_session import TorchSession

LENGTH = 12
DRAFTED = DecodingConfig(name="self_speculative", draft_tokens=4)
LOOKED_UP = DRAFTED.replace(draft="ngram")
KEPT, SEEDED = (0, 2, 5), torch.Generator().manual_seed(0)


def decoder_for(model, kept=None):
    depth = model.config.num_hidden_layers
    return Decoder(Views.of(model, Schedule.from_layers(depth, kept or range(depth))))


@pytest.mark.parametrize("decoding", [DRAFTED, LOOKED_UP], ids=["4bit", "ngram"])
def test_models_that_cannot_check_drafts_are_refused(llama, decoding):
    decoder = decoder_for(llama, KEPT)
    llama.config.rope_parameters |= {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(UsageError, match=r"depend on the length.*decoding\.draft"):
        generate(decoder, *batch(False), LENGTH, decoding)
    llama.config.rope_parameters |= {"rope_type": "default"}
    llama.config._attn_implementation = "flex_attention"
    with pytest.raises(UsageError, match=r"flex_attention.*decoding\.draft"):
        generate(decoder_for(llama, KEPT), *batch(False), LENGTH, decoding)


def test_a_model_without_native_steps_has_no_copy_that_drafts(monkeypatch):
    model = build_model("gpt2")
    with pytest.raises(UsageError, match=r"drafts in 4 bits with .*decoding\.draft=ngram"):
        generate(decoder_for(model), *batch(False), LENGTH, DRAFTED)
    monkeypatch.setenv("ULSKIP_KERNEL", "off")
    with pytest.raises(UsageError, match="ULSKIP_KERNEL=off"):
        generate(decoder_for(build_model("llama")), *batch(False), LENGTH, DRAFTED)


@pytest.mark.parametrize("kept", [None, KEPT], ids=["all", "kept"])
def test_tokens_are_those_of_plain_steps(model, kept):
    decoder, drafts, near_ties = decoder_for(model, kept), DraftStats(), 0
    view = decoder.views.stages[0].view
    for ends, padded in ((None, False), (None, True), (MANY_ENDS, True)):
        model.generation_config.eos_token_id = ends
        ids, mask = batch(padded)
        expected = generate(decoder, ids, mask, 3 * LENGTH).token_ids
        for count, i in product((1, 4, 10), range(len(ids))):
            row = slice(i, i + 1)
            looked_up = LOOKED_UP.replace(draft_tokens=count)
            output = generate(decoder, ids[row], mask[row], 3 * LENGTH, looked_up)
            assert output.engine == "torch"
            drafts += output.drafts
            texts = ids[row], mask[row], output.token_ids, expected[row]
            near_ties += count_near_ties(view, *texts)
    assert near_ties <= 3  # a sequence may be the same one three times
    assert kept or 0 < drafts.accepted < drafts.drafted  # kept layers repeat themselves less


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NATIVE_ARCHITECTURES)
def test_a_copy_in_four_bits_changes_no_token(name, dtype, monkeypatch):
    # so that any number of tokens is drafted, whatever they cost
    counts = iter(torch.randint(MOST_DRAFTS + 1, (9999,), generator=SEEDED).tolist())
    monkeypatch.setattr(DraftLength, "best", lambda self, most: min(most, next(counts)))
    model, stats = build_model(name).to(dtype), DraftStats()
    (ids, mask), depth = batch(True), model.config.num_hidden_layers
    adapter, _ = random_adapter(model, KEPT, "full")
    for kept in (None, KEPT):
        schedule = Schedule.from_layers(depth, kept or range(depth))
        decoder = Decoder(Views.of(model, schedule, adapter if kept else None))
        for ends in (None, MANY_ENDS):
            model.generation_config.eos_token_id = ends
            for i in range(len(ids)):
                text = ids[i : i + 1], mask[i : i + 1], 3 * LENGTH
                plain = generate(decoder, *text)
                drafted = generate(decoder, *text, DRAFTED.replace(draft_tokens=MOST_DRAFTS))
                assert drafted.token_ids == plain.token_ids
                assert drafted.hit_max_length == plain.hit_max_length
                stats += drafted.drafts
    assert 0 < stats.accepted < stats.drafted


COSTS = st.floats(0.05, 1.2), st.floats(0.0, 0.6)


@given(*COSTS, st.integers(0, MOST_DRAFTS))
def test_drafts_that_are_never_right_end_and_are_tried_again(draft, more, most):
    length = DraftLength(draft, [1 + more * count for count in range(MOST_DRAFTS + 1)])
    counts = [length.best(most)]
    for _ in range(400):
        length.count(counts[-1], 0)
        counts.append(length.best(most))
    lost = sum(count * (draft + more) for count in counts[200:])  # in steps, of 201
    assert lost <= 0.05 * 201
    assert bool(counts[0]) == any(counts[200:])


@given(*COSTS, st.integers(0, MOST_DRAFTS))
def test_drafts_that_are_always_right_are_as_many_as_pay(draft, more, most):
    checks = [1 + more * count for count in range(MOST_DRAFTS + 1)]
    length = DraftLength(draft, checks)
    for _ in range(1000):
        length.count(MOST_DRAFTS, MOST_DRAFTS)
    rates = [(count + 1) / (count * draft + checks[count]) for count in range(most + 1)]
    assert rates[length.best(most)] >= 0.98 * max(rates)


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
    decoding = LOOKED_UP.replace(draft_tokens=data.draw(st.sampled_from([1, 3, 10])))
    plain = generate(decoder_for(model, kept), ids * mask, mask, length)
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            drafter = Rubbish(seed, vocab_size)
            patch.setattr(TorchSession, "drafter", lambda self, request: drafter)
        drafted = generate(decoder_for(model, kept), ids * mask, mask, length, decoding)
    assert drafted.token_ids == plain.token_ids
    assert drafted.hit_max_length == plain.hit_max_length


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 9))
def test_a_look_up_is_the_continuation_of_the_longest_match(ids, most):
    drafts = LookUp()(torch.tensor([ids]), most).tolist()
    lengths = {
        length: end
        for length in range(2, most + 1)
        for end in reversed(range(length, len(ids)))
        if ids[end - length : end] == ids[len(ids) - length :]
    }
    longest = max(lengths, default=0)
    start = lengths.get(longest, len(ids))
    assert drafts == ids[start : start + longest]
