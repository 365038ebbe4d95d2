import pytest
import torch

from ulskip_cli.inference.engines import draft_verification

ROWS, VOCAB_SIZE, DRAFTS = 40_000, 6, 2
NEAR = 0.015  # total variation that 40,000 draws leave to chance, and no wrong rule below


def test_greedy_accepts_up_to_the_first_that_differs():
    scores = torch.eye(5)[torch.tensor([[1, 2, 3], [1, 2, 3], [4, 2, 3]])]
    verdict = draft_verification.greedy(torch.tensor([[1, 2], [1, 0], [1, 2]]), scores)
    assert verdict.accepted.tolist() == [2, 1, 0]
    assert verdict.tokens.tolist() == [[1, 2, 3], [1, 2, 3], [4, 2, 3]]


def test_without_drafts_there_is_the_full_models_next_token():
    none, scores = torch.empty(3, 0, dtype=torch.long), torch.eye(5)[torch.tensor([[1], [2], [3]])]
    sure = 1000 * scores
    for verdict in (draft_verification.greedy(none, scores), draft_verification.sampled(none, sure[:, :0], sure)):
        assert verdict.accepted.tolist() == [0, 0, 0]
        assert verdict.tokens.tolist() == [[1], [2], [3]]


@pytest.fixture
def drawn():
    """Drafts out of q, the scores of q and p, and p itself; the last token has no chance in p, as under top-k."""
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
    verdict = draft_verification.sampled(drafts, q_scores, p_scores)
    for i in range(DRAFTS + 1):
        reached = verdict.accepted >= i  # only there is a token valid
        assert reached.sum() > ROWS / 4
        assert distance(verdict.tokens[reached, i], p[i]) < NEAR


def test_wrong_rules_are_told_apart(drawn):
    drafts, q_scores, _, p = drawn
    q = torch.softmax(q_scores[0, 0], dim=-1)
    first, everywhere = drafts[:, 0], torch.multinomial(p[0], ROWS, replacement=True)
    agree = torch.rand(ROWS) * q[first] < p[0][first]
    assert distance(first, p[0]) > 4 * NEAR  # all accepted
    assert distance(torch.where(agree, first, everywhere), p[0]) > 4 * NEAR  # p drawn from after a rejection, not the rest
    assert distance(everywhere, p[0]) < NEAR


def test_where_both_agree_everything_is_accepted(drawn):
    drafts, q_scores, _, _ = drawn
    whole = torch.cat([q_scores, q_scores[:, :1]], dim=1)
    verdict = draft_verification.sampled(drafts, q_scores, whole)
    assert verdict.accepted.min() == DRAFTS
    assert torch.equal(verdict.tokens[:, :DRAFTS], drafts)
