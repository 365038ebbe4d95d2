import pytest
import torch

from ulskip_cli.engines.drafters import Drafts
from ulskip_cli.engines.speculative import verify_greedy, verify_sampled

ROWS, VOCAB_SIZE, DRAFTS = 40_000, 6, 2
NEAR = 0.015  # total variation distance; above chance with 40,000 draws, and below every wrong rule


def test_greedy_accepts_up_to_the_first_that_differs():
    chosen = torch.tensor([[1, 2, 3], [1, 2, 3], [4, 2, 3]])
    verification = verify_greedy(torch.tensor([[1, 2], [1, 0], [1, 2]]), chosen)
    assert verification.accepted.tolist() == [2, 1, 0]
    assert verification.tokens.tolist() == [[1, 2, 3], [1, 2, 3], [4, 2, 3]]


def test_without_drafts_the_full_model_chooses_the_next_token():
    none, chosen = torch.empty(3, 0, dtype=torch.long), torch.tensor([[1], [2], [3]])
    sure = 1000 * torch.eye(5)[chosen]
    for verification in (verify_greedy(none, chosen), verify_sampled(Drafts(none), sure)):
        assert verification.accepted.tolist() == [0, 0, 0]
        assert verification.tokens.tolist() == [[1], [2], [3]]


@pytest.fixture
def drawn():
    """Drafts drawn from q, the scores of q and p, and p itself; p of the last token is 0, as under
    top-k.
    """
    torch.manual_seed(0)
    q_scores, p_scores = torch.randn(DRAFTS, VOCAB_SIZE), torch.randn(DRAFTS + 1, VOCAB_SIZE)
    p_scores[:, -1] = -torch.inf
    q = torch.softmax(q_scores, dim=-1)
    drafts = torch.stack(
        [torch.multinomial(q[i], ROWS, replacement=True) for i in range(DRAFTS)], dim=1
    )
    return (
        drafts,
        q_scores.expand(ROWS, -1, -1),
        p_scores.expand(ROWS, -1, -1),
        torch.softmax(p_scores, dim=-1),
    )


def distance(tokens, shares):
    """Total variation between drawn tokens and a distribution."""
    return float((tokens.bincount(minlength=VOCAB_SIZE) / len(tokens) - shares).abs().sum()) / 2


def test_sampled_tokens_are_distributed_as_the_full_models(drawn):
    drafts, q_scores, p_scores, p = drawn
    verification = verify_sampled(Drafts(drafts, q_scores), p_scores)
    for i in range(DRAFTS + 1):
        reached = verification.accepted >= i  # later tokens are not valid
        assert reached.sum() > ROWS / 4
        assert distance(verification.tokens[reached, i], p[i]) < NEAR


def test_certain_drafts_leave_the_full_models_distribution(drawn):
    _, _, p_scores, p = drawn
    verification = verify_sampled(Drafts(torch.tensor([[1, 2]]).expand(ROWS, -1)), p_scores)
    assert distance(verification.tokens[:, 0], p[0]) < NEAR
    assert (
        distance(verification.tokens[verification.accepted > 0, 1], p[1]) < 3 * NEAR
    )  # a few thousand draws


def test_wrong_acceptance_rules_fail_the_distribution_check(drawn):
    drafts, q_scores, _, p = drawn
    q = torch.softmax(q_scores[0, 0], dim=-1)
    first, everywhere = drafts[:, 0], torch.multinomial(p[0], ROWS, replacement=True)
    agree = torch.rand(ROWS) * q[first] < p[0][first]
    assert distance(first, p[0]) > 4 * NEAR  # all accepted
    assert (
        distance(torch.where(agree, first, everywhere), p[0]) > 4 * NEAR
    )  # p drawn from after a rejection, not the rest
    assert distance(everywhere, p[0]) < NEAR


def test_equal_distributions_accept_every_draft(drawn):
    drafts, q_scores, _, _ = drawn
    whole = torch.cat([q_scores, q_scores[:, :1]], dim=1)
    verification = verify_sampled(Drafts(drafts, q_scores), whole)
    assert verification.accepted.min() == DRAFTS
    assert torch.equal(verification.tokens[:, :DRAFTS], drafts)
