import pytest
import torch
from reference import build_model, random_ids
from torch import nn

from ulskip_cli.engines.drafters import (
    MAX_MISSES,
    PAUSE,
    DraftHead,
    NgramDrafter,
    draft_head_of,
    with_draft_head,
)

VOCAB, SIZE = 20, 6


@pytest.mark.parametrize("bias", [True, False])
def test_the_scored_tokens_have_the_logits_of_the_head(bias):
    head = nn.Linear(8, VOCAB, bias=bias)
    short, hidden = DraftHead(head, SIZE), torch.randn(2, 1, 8)
    with torch.inference_mode():
        for prompts, scored in (([], []), ([[1, 9], [9, 15]], [9, 15]), ([[7, 0]], [7])):
            short.begin(torch.tensor(prompts, dtype=torch.long))
            logits, known = short(hidden), [*range(SIZE), *scored]
            torch.testing.assert_close(logits[..., known], head(hidden)[..., known])
            others = [token for token in range(VOCAB) if token not in known]
            assert logits[..., others].isneginf().all()


def test_the_first_rows_are_shared_with_the_head():
    head = nn.Linear(8, VOCAB)
    assert DraftHead(head, SIZE).first.weight.data_ptr() == head.weight.data_ptr()


def test_a_view_with_a_draft_head_shares_the_layers(model):
    view, ids = with_draft_head(model, SIZE), random_ids(2, 5)
    head = draft_head_of(view)
    assert draft_head_of(model) is None
    head.begin(ids)
    with torch.inference_mode():
        got, expected = view(ids).logits, model(ids).logits
    known = sorted({*range(SIZE), *ids.flatten().tolist()})
    torch.testing.assert_close(got[..., known], expected[..., known])
    assert {id(one) for one in view.parameters()} >= {id(one) for one in model.parameters()}


def test_a_head_of_another_kind_or_without_more_tokens_stays():
    model = build_model("llama")
    assert with_draft_head(model, model.config.vocab_size) is model

    class Scaled(nn.Linear):
        pass

    model.lm_head.__class__ = Scaled
    assert with_draft_head(model, SIZE) is model


def proposed(*rows, count=3):
    return NgramDrafter().propose(torch.tensor(rows), count).tokens.tolist()


@pytest.mark.parametrize(
    ("ids", "drafts"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], [4, 5, 1]),
        ([7, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3], [5, 9, 1]),  # three tokens before two
        ([8, 2, 3, 4, 1, 2, 3], [4, 1, 2]),
        ([3, 4, 5, 1, 2, 3], []),  # one token is no evidence
        ([6, 6, 6, 6], [6]),
        ([1], []),
    ],
)
def test_the_last_tokens_are_looked_up(ids, drafts):
    assert proposed(ids) == [drafts]


def test_a_batch_drafts_as_many_as_every_sequence_has():
    assert proposed([1, 2, 3, 4, 1, 2], [9, 5, 6, 7, 5, 6]) == [[3, 4, 1], [7, 5, 6]]
    assert proposed([1, 2, 3, 4, 1, 2], [5, 5, 5, 5, 5, 5]) == [[3, 4, 1], [5, 5, 5]]
    assert proposed([1, 2, 3, 4, 1, 2], [1, 2, 3, 4, 5, 6]) == [[], []]


def test_after_two_misses_there_is_a_pause():
    drafter, text = NgramDrafter(), [1, 2] * 20
    drafted = [
        bool(drafter.propose(torch.tensor([text[: 10 + i]]), 2).tokens.shape[1]) for i in range(12)
    ]
    assert drafted[: MAX_MISSES + PAUSE + 1] == [True] * MAX_MISSES + [False] * PAUSE + [True]
    drafter = NgramDrafter()
    accepted = [
        drafter.propose(torch.tensor([text[: 10 + 3 * i]]), 2).tokens.shape[1] for i in range(8)
    ]
    assert accepted == [2] * 8
