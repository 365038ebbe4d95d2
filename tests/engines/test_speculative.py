"""Speculative decoding: exactness against plain decoding, drafters, checks and draft lengths."""

import itertools
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import batch, count_near_ties, stack_of
from transformers import LlamaConfig, LlamaForCausalLM

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines import speculative
from ulskip_cli.engines.base import DraftStats
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.sampling import (
    Drafts,
    InvalidLogitsError,
    TokenSampler,
    verify_sampled,
)
from ulskip_cli.engines.speculative import CREDIT, MARGIN, DraftLength, NgramDrafter
from ulskip_cli.strategies.plan import Plan

LENGTH = 12
DRAFTED = DecodingConfig(name="self_speculative", max_new_tokens=LENGTH, draft_tokens=4)
ENDS = [7, 20, 33, 40, 50, 60, 70, 80]
KEPT = (0, 2, 5)


@pytest.fixture(scope="module", autouse=True)
def unsure_drafters():
    """Let layers draft on with any confidence, because random models are never sure; measure costs
    once.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculative, "MIN_PROBABILITY", 0.0)
        patch.setattr(speculative, "MEASUREMENTS", 1)
        yield


def decoder_for(model, kept=None):
    depth = model.config.num_hidden_layers
    return Decoder(model, Plan.from_layers(depth, kept or range(depth)))


@pytest.mark.parametrize("kept", [None, KEPT], ids=["ngram", "layers"])
def test_drafts_are_refused_for_rotary_positions_that_depend_on_the_length(llama, kept):
    decoder = decoder_for(llama, kept)
    llama.config.rope_parameters |= {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(UsageError, match=r"depend on the length.*draft_tokens=0"):
        decoder.generate(*batch(False), DecodeContext(DRAFTED, 0))


def agreeing(model, kept):
    """Scale the other layers down so that the kept ones predict many tokens of the model, but not
    all.
    """
    with torch.no_grad():
        for i, layer in enumerate(stack_of(model)):
            for name, weight in layer.named_parameters() if i not in kept else ():
                if "post_" in name and model.config.model_type == "gemma2":  # scales what is added
                    weight.fill_(-0.8)
                elif weight.dim() > 1:
                    weight.mul_(0.5)
    return model


def alone():
    """One prompt without padding."""
    ids, mask = batch(False)
    return ids[:1], mask[:1]


def by_generate(model, ids, mask, decoding=DRAFTED, **options):
    """The full model's own tokens, by transformers' generate."""
    plain = decoding.without_drafts()
    decoder = decoder_for(model).with_engine("transformers")
    return decoder.generate(ids, mask, DecodeContext(plain, 0), **options).token_ids


def test_tokens_equal_those_of_the_full_models_generate(model):
    decoder, drafts, near_ties = decoder_for(agreeing(model, KEPT), KEPT), DraftStats(), 0
    for ends, padded in ((None, False), (None, True), (ENDS, True)):
        model.generation_config.eos_token_id = ends
        ids, mask = batch(padded)
        expected = by_generate(model, ids, mask)
        for count, i in product((1, 4, "auto"), range(len(ids))):
            row = slice(i, i + 1)
            output = decoder.generate(
                ids[row], mask[row], DecodeContext(DRAFTED.replace(draft_tokens=count), 0)
            )
            assert output.engine == "speculative"
            drafts += output.drafts
            texts = ids[row], mask[row], output.token_ids, expected[row]
            near_ties += count_near_ties(model, *texts)
    assert near_ties <= 3  # a sequence may be the same one three times
    assert 0 < drafts.accepted < drafts.drafted  # some drafts were accepted and some rejected
    assert drafts.gained > drafts.passes


def test_nothing_is_drafted_behind_an_improbable_draft(llama, monkeypatch):
    ids, mask = alone()
    monkeypatch.setattr(speculative, "MIN_PROBABILITY", 1.1)
    drafts = decoder_for(llama, KEPT).generate(ids, mask, DecodeContext(DRAFTED, 0)).drafts
    # nothing is drafted in front of the last token
    assert drafts.drafted in (drafts.passes, drafts.passes - 1)


def test_unsupported_models_are_refused(llama):
    ids, mask = alone()
    llama.config._attn_implementation = "flex_attention"
    with pytest.raises(UsageError, match=r"flex_attention.*decoding\.draft_tokens"):
        decoder_for(llama, KEPT).generate(ids, mask, DecodeContext(DRAFTED, 0))


class Rubbish:
    """A drafter that proposes any number of any tokens, which its seed decides."""

    most = LENGTH

    def __init__(self, seed, vocab_size):
        self.generator, self.vocab_size = torch.Generator().manual_seed(seed), vocab_size

    def propose(self, ids, count):
        length = int(torch.randint(count + 1, (), generator=self.generator))
        return Drafts(torch.randint(self.vocab_size, (len(ids), length), generator=self.generator))


class Known:
    """A drafter that proposes tokens that are known, each increased by `error`."""

    most = LENGTH

    def __init__(self, tokens, error):
        self.tokens, self.error = torch.tensor([tokens]), error

    def propose(self, ids, count):
        return Drafts((self.tokens[:, ids.shape[1] :][:, :count] + self.error) % 99)


def test_the_drafter_whose_drafts_are_accepted_is_used(llama, monkeypatch):
    ids, mask = alone()
    decoding = DRAFTED.replace(max_new_tokens=40, draft_tokens=2)
    expected = by_generate(llama, ids, mask, decoding)
    texts = [*ids[0].tolist(), *expected[0]]
    drafters = [Known(texts, 1), Known(texts, 0)]
    monkeypatch.setattr(speculative.Drafting, "drafters", lambda *args: drafters)
    output = decoder_for(llama, KEPT).generate(ids, mask, DecodeContext(decoding, 0))
    assert output.token_ids == expected
    assert output.drafts.passes < len(expected[0]) / 2


def tiny(seed, vocab_size, width, spread):
    """Make a random model of 3 layers."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 3}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    shape = LlamaConfig(
        vocab_size=vocab_size, num_attention_heads=2, initializer_range=spread, **sizes, **ends
    )
    return LlamaForCausalLM(shape).eval()


@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 999), vocab_size=st.integers(4, 12))
def test_any_drafter_gives_the_tokens_of_plain_greedy_decoding(data, seed, vocab_size):
    model = tiny(seed, vocab_size, 8, 0.8).double()
    kept = data.draw(st.sampled_from([(0, 2), (0, 1), (1, 2), (1,)]))
    model.generation_config.eos_token_id = data.draw(st.sampled_from([None, 1, [2, 3]]))
    ids = torch.randint(1, vocab_size, (1, 6))
    mask = torch.ones_like(ids)
    mask[0, : data.draw(st.integers(0, 4))] = 0
    banned = data.draw(st.sampled_from([0, 3]))
    decoding = DecodingConfig(
        max_new_tokens=data.draw(st.integers(1, 30)),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.5])),
        no_repeat_ngram_size=banned,
        draft_tokens=data.draw(st.sampled_from([1, 3, 10, "auto"])),
        draft=data.draw(st.sampled_from(["layers", "ngram", "both"])),
    )
    try:
        plain = decoder_for(model).generate(
            ids * mask, mask, DecodeContext(decoding.without_drafts(), 0)
        )
    except InvalidLogitsError:
        assume(False)  # all of so small a vocabulary was banned
    foreign = data.draw(st.sampled_from([None, Rubbish(seed, vocab_size), NgramDrafter(2)]))
    with pytest.MonkeyPatch.context() as patch:
        if foreign:
            patch.setattr(
                speculative.Drafting,
                "drafters",
                lambda *args: [foreign, Rubbish(seed, vocab_size)],
            )
        drafted = decoder_for(model, kept).generate(ids * mask, mask, DecodeContext(decoding, 0))
    assert drafted.token_ids == plain.token_ids
    assert drafted.hit_max_length == plain.hit_max_length


def test_costs_are_measured_once(llama):
    decoder, (ids, mask) = decoder_for(llama, KEPT), alone()
    measured = [
        decoder.generate(ids, mask, DecodeContext(DRAFTED, 0)).compile_seconds for _ in range(2)
    ]
    assert measured[0] > 0 and measured[1] == 0


SAMPLED = DecodingConfig(
    name="s", max_new_tokens=4, draft_tokens=2, do_sample=True, temperature=1.2, top_k=4, top_p=0.95
)
NEAR_SAMPLES = 0.08  # total variation distance; chance alone causes about 0.04 with 1,500 draws


def exact_shares(model, prompt):
    """Compute the full model's distribution of the second and third token after a prompt, [25]."""
    choose = TokenSampler(SAMPLED, [], torch.device("cpu"))
    ids = torch.tensor([[*prompt, *three] for three in product(range(5), repeat=3)])
    with torch.no_grad():
        logits = model(ids).logits
    shares = torch.ones(len(ids))
    for at in range(len(prompt), len(prompt) + 3):
        chances = torch.softmax(choose.scores(ids[:, :at], logits[:, at - 1]), dim=-1)
        shares = shares * chances[torch.arange(len(ids)), ids[:, at]]
    return shares.view(5, 25).sum(0)


def drawn_pairs(decoder, prompt, decoding, runs):
    """Draw second and third tokens, as numbers below 25, in many runs, padded on the left."""
    ids = torch.tensor([[0, *prompt]])
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    rows = [
        row
        for seed in range(runs)
        for row in decoder.generate(ids, mask, DecodeContext(decoding, 0, seed)).token_ids
    ]
    return torch.tensor([5 * row[1] + row[2] for row in rows])


def distance(drawn, shares):
    """Total variation between drawn numbers and a distribution."""
    return float((drawn.bincount(minlength=len(shares)) / len(drawn) - shares).abs().sum()) / 2


@pytest.mark.slow
@pytest.mark.long
def test_samples_are_distributed_as_the_full_models():
    small = tiny(3, 5, 16, 0.4)  # skipping the middle layer changes its distribution
    prompt, decoder = [1, 4, 2], decoder_for(small, (0, 2))
    expected = exact_shares(small, prompt)
    unchecked = drawn_pairs(decoder, prompt, SAMPLED.without_drafts(), 450)  # the view's own words
    assert distance(drawn_pairs(decoder, prompt, SAMPLED, 1500), expected) < NEAR_SAMPLES
    assert distance(unchecked, expected) > 2 * NEAR_SAMPLES


ROWS, VOCAB_SIZE, DRAFTS = 40_000, 6, 2
NEAR = 0.015  # total variation distance; above chance with 40,000 draws, and below every wrong rule


@pytest.fixture
def drawn():
    """Drafts drawn from q, the scores of q and p, and p itself; p of the last token is 0, as under
    top-k.
    """
    torch.manual_seed(0)
    q_scores, p_scores = torch.randn(DRAFTS, VOCAB_SIZE), torch.randn(DRAFTS + 1, VOCAB_SIZE)
    p_scores[:, -1] = -torch.inf
    q = torch.softmax(q_scores, dim=-1)
    drafts = torch.multinomial(q, ROWS, replacement=True).T
    scores = q_scores.expand(ROWS, -1, -1), p_scores.expand(ROWS, -1, -1)
    return drafts, *scores, torch.softmax(p_scores, dim=-1)


def test_sampled_tokens_are_distributed_as_the_full_models(drawn):
    drafts, q_scores, p_scores, p = drawn
    tokens, accepted = verify_sampled(Drafts(drafts, q_scores), p_scores)
    for i in range(DRAFTS + 1):
        reached = accepted >= i  # later tokens are not valid
        assert reached.sum() > ROWS / 4
        assert distance(tokens[reached, i], p[i]) < NEAR


def test_certain_drafts_leave_the_full_models_distribution(drawn):
    _, _, p_scores, p = drawn
    tokens, accepted = verify_sampled(Drafts(torch.tensor([[1, 2]]).expand(ROWS, -1)), p_scores)
    assert distance(tokens[:, 0], p[0]) < NEAR
    assert distance(tokens[accepted > 0, 1], p[1]) < 3 * NEAR  # a few thousand draws


CHECKS = [1.0, 1.05, 1.13, 1.28, 1.44, 1.54, 1.62, 1.83]


@pytest.mark.parametrize("draft_cost", [0.0, 0.6])
def test_drafts_that_are_accepted_later_are_found(draft_cost):
    length = DraftLength("auto", draft_cost, CHECKS)
    for _ in range(200):
        length.update(0, length.next(8))
    for _ in range(400):
        length.update(length.next(8), length.next(8))
    assert length.next(8) > 0


@given(
    st.floats(0, 2),
    st.lists(st.floats(1, 8), min_size=1, max_size=8).map(sorted),
    st.lists(st.integers(0, 8), min_size=1, max_size=300),
    st.integers(0, 9),
)
def test_no_drafts_cost_more_than_the_credit_and_the_margin(draft_cost, checks, accepted, most):
    length, time, tokens = DraftLength("auto", draft_cost, [1.0, *checks[1:]]), 0.0, 0
    for count in accepted:
        drafted = length.next(most)
        assert drafted <= most
        gained = 1 + min(count, drafted)
        length.update(gained - 1, drafted)
        time, tokens = time + length.cost(drafted), tokens + gained
    assert time <= (1 + MARGIN) * tokens + CREDIT + 1e-6


def proposed(size, ids):
    drafter = NgramDrafter(size)
    return drafter.propose(torch.tensor([ids]), min(4, drafter.most)).tokens[0].tolist()


@pytest.mark.parametrize(
    ("ids", "drafts"),  # of look-ups of three, two and one tokens
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], ([4, 5, 1, 2], [4, 5], [4])),
        ([7, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3], ([5, 9, 1, 2], [4, 9], [4])),
        ([8, 2, 3, 4, 1, 2, 3], ([], [4, 1], [4])),
        ([3, 4, 5, 1, 2, 3], ([], [], [4])),
        ([6, 6, 6, 6, 6], ([6, 6], [6, 6], [6])),
        ([1], ([], [], [])),
    ],
)
def test_the_last_tokens_are_looked_up_and_short_matches_draft_few(ids, drafts):
    assert tuple(proposed(size, ids) for size in (3, 2, 1)) == drafts


def test_what_one_batch_learned_changes_nothing_in_the_next(model, monkeypatch):
    """Draft lengths are learned anew, so that a timed side depends on its own batch alone."""
    times = itertools.count()
    monkeypatch.setattr(speculative, "now", lambda device: next(times))  # all take one second
    decoding = DRAFTED.replace(draft_tokens="auto", draft="both")
    ids, mask = alone()
    other, model = ids.flip(1), agreeing(model, KEPT)

    def stats(*prompts):
        decoder = decoder_for(model, KEPT)
        outputs = [decoder.generate(prompt, mask, DecodeContext(decoding, 0)) for prompt in prompts]
        return outputs[-1].drafts

    assert stats(other, ids) == stats(ids)
