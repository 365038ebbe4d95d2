import pytest
import torch

from ulskip_cli.engines.speculative import MAX_DRAFTS, DraftLength, verify_greedy, verify_sampled

ROWS, VOCAB_SIZE, DRAFTS = 40_000, 6, 2
NEAR = 0.015  # total variation distance; above chance with 40,000 draws, and below every wrong rule


def test_a_fixed_draft_length_does_not_change():
    length = DraftLength(3, 0.5)
    length.update(0, 3)
    assert length.next() == 3


def test_more_is_drafted_while_drafts_are_accepted_and_less_when_they_are_not():
    length = DraftLength("auto", 0.3)
    first = length.next()
    for _ in range(30):
        length.update(length.next(), length.next())
    assert length.next() == MAX_DRAFTS > first
    for _ in range(30):
        length.update(0, length.next())
    assert length.next() == 1 < first


def test_cheap_drafts_are_made_longer():
    assert DraftLength("auto", 0.1).next() > DraftLength("auto", 0.7).next()


def test_drafts_after_the_first_rejected_one_do_not_count():
    one, other = DraftLength("auto", 0.3), DraftLength("auto", 0.3)
    one.update(1, 2)
    other.update(1, 12)
    assert one.next() == other.next()


def test_greedy_accepts_up_to_the_first_that_differs():
    scores = torch.eye(5)[torch.tensor([[1, 2, 3], [1, 2, 3], [4, 2, 3]])]
    verification = verify_greedy(torch.tensor([[1, 2], [1, 0], [1, 2]]), scores)
    assert verification.accepted.tolist() == [2, 1, 0]
    assert verification.tokens.tolist() == [[1, 2, 3], [1, 2, 3], [4, 2, 3]]


def test_without_drafts_the_full_model_chooses_the_next_token():
    none, scores = torch.empty(3, 0, dtype=torch.long), torch.eye(5)[torch.tensor([[1], [2], [3]])]
    sure = 1000 * scores
    for verification in (verify_greedy(none, scores), verify_sampled(none, sure[:, :0], sure)):
        assert verification.accepted.tolist() == [0, 0, 0]
        assert verification.tokens.tolist() == [[1], [2], [3]]


@pytest.fixture
def drawn():
    """Drafts drawn from q, the scores of q and p, and p itself; p of the last token is 0, as under top-k."""
    torch.manual_seed(0)
    q_scores, p_scores = torch.randn(DRAFTS, VOCAB_SIZE), torch.randn(DRAFTS + 1, VOCAB_SIZE)
    p_scores[:, -1] = -torch.inf
    q = torch.softmax(q_scores, dim=-1)
    drafts = torch.stack([torch.multinomial(q[i], ROWS, replacement=True) for i in range(DRAFTS)], dim=1)
    return drafts, q_scores.expand(ROWS, -1, -1), p_scores.expand(ROWS, -1, -1), torch.softmax(p_scores, dim=-1)


def distance(tokens, shares):
    """Total variation between drawn tokens and a distribution."""
    return float((tokens.bincount(minlength=VOCAB_SIZE) / len(tokens) - shares).abs().sum()) / 2


def test_sampled_tokens_are_distributed_as_the_full_models(drawn):
    drafts, q_scores, p_scores, p = drawn
    verification = verify_sampled(drafts, q_scores, p_scores)
    for i in range(DRAFTS + 1):
        reached = verification.accepted >= i  # later tokens are not valid
        assert reached.sum() > ROWS / 4
        assert distance(verification.tokens[reached, i], p[i]) < NEAR


def test_wrong_acceptance_rules_fail_the_distribution_check(drawn):
    drafts, q_scores, _, p = drawn
    q = torch.softmax(q_scores[0, 0], dim=-1)
    first, everywhere = drafts[:, 0], torch.multinomial(p[0], ROWS, replacement=True)
    agree = torch.rand(ROWS) * q[first] < p[0][first]
    assert distance(first, p[0]) > 4 * NEAR  # all accepted
    assert distance(torch.where(agree, first, everywhere), p[0]) > 4 * NEAR  # p drawn from after a rejection, not the rest
    assert distance(everywhere, p[0]) < NEAR


def test_equal_distributions_accept_every_draft(drawn):
    drafts, q_scores, _, _ = drawn
    whole = torch.cat([q_scores, q_scores[:, :1]], dim=1)
    verification = verify_sampled(drafts, q_scores, whole)
    assert verification.accepted.min() == DRAFTS
    assert torch.equal(verification.tokens[:, :DRAFTS], drafts)
