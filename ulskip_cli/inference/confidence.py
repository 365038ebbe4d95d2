"""How sure a model is of its next token behind one of its layers (arXiv:2207.07061)."""

import torch
from torch import Tensor
from torch.nn import functional


def softmax_diff(logits: Tensor) -> Tensor:
    """p1 - p2, the chances of the two likeliest tokens: [..., vocab_size] to [...]."""
    best = torch.softmax(logits.float(), dim=-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def softmax_max(logits: Tensor) -> Tensor:
    """p1, the likeliest token's chance: [..., vocab_size] to [...]."""
    return torch.softmax(logits.float(), dim=-1).amax(dim=-1)


def cosine(hidden: Tensor, before: Tensor) -> Tensor:
    """Of the hidden states at two checks in a row: [..., hidden_size] each, to [...]."""
    return functional.cosine_similarity(hidden.float(), before.float(), dim=-1)


OF_LOGITS = {"softmax_diff": softmax_diff, "softmax_max": softmax_max}
