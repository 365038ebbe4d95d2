import math

import torch

from ulskip_cli.inference import confidence


def test_they_are_what_their_names_say():
    logits = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]]).log().clamp(min=-50)
    torch.testing.assert_close(confidence.softmax_max(logits), torch.tensor([0.6, 1.0]))
    torch.testing.assert_close(confidence.softmax_diff(logits), torch.tensor([0.3, 1.0]))
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 2.0]])
    torch.testing.assert_close(confidence.cosine(one, other), torch.tensor([1 / math.sqrt(2)]))
    torch.testing.assert_close(confidence.cosine(one, one), torch.tensor([1.0]))


def test_half_precision_is_read_in_single():
    logits = torch.tensor([[1.0, 1.001, -3.0]]).bfloat16()
    for read in confidence.OF_LOGITS.values():
        assert read(logits).dtype == torch.float32
