import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.engines.sampling import InvalidLogitsError, TokenSampler

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [4, 5, 6, 7])
@pytest.mark.parametrize("ends", [[], [3], [0, 8]])
def test_eos_is_suppressed_as_by_transformers(length, ends):
    logits, ids = (
        torch.randn(2, 9, generator=torch.Generator().manual_seed(0)),
        torch.ones(2, length, dtype=torch.long),
    )
    wanted = MinNewTokensLengthLogitsProcessor(4, 2, ends)(ids, logits) if ends else logits.clone()
    assert torch.equal(TokenSampler(DecodingConfig(), 4, ends, 2, CPU).scores(ids, logits), wanted)


def test_the_first_of_equal_scores_is_chosen():
    scores = torch.tensor([[1.0, 3.0, 3.0], [-float("inf"), -float("inf"), -2.0], [0.0, 0.0, 0.0]])
    assert (
        TokenSampler(DecodingConfig(), 1, [], 0, CPU).pick(scores).tolist()
        == scores.argmax(-1).tolist()
        == [1, 2, 0]
    )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_choose_no_token(wrong):
    with pytest.raises(InvalidLogitsError, match="finite"):
        TokenSampler(DecodingConfig(), 1, [], 0, CPU).pick(torch.tensor([[1.0, 2.0], [0.0, wrong]]))
