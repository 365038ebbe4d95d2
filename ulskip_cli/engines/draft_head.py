"""An output head for drafts, which scores a part of the vocabulary."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ulskip_cli.inference import shallow_view


class DraftHead(nn.Module):
    """The logits of the first tokens of the vocabulary and of a batch's prompts; all other tokens
    get -inf.

    A step then reads a part of the head's weight. Frequent tokens come first in most vocabularies,
    and answers repeat tokens of their prompt. FR-Spec (arXiv:2502.14856) chooses the part by
    frequencies that are counted before.
    """

    def __init__(self, head: nn.Linear, size: int) -> None:
        super().__init__()
        self.weight, self.size = head.weight, size
        self.first = nn.Linear(head.in_features, size, bias=False, device="meta")
        self.first.weight = nn.Parameter(head.weight.detach()[:size], requires_grad=False)
        self.begin(torch.empty(0, dtype=torch.long, device=head.weight.device))

    def begin(self, ids: Tensor) -> None:
        """Score the tokens `ids` [any shape] too."""
        self._more_ids = torch.unique(ids[ids >= self.size])
        self._more_weight = self.weight.detach()[self._more_ids]

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab_size] of `hidden` [..., hidden_size]."""
        logits = hidden.new_full((*hidden.shape[:-1], len(self.weight)), -torch.inf)
        logits[..., : self.size] = self.first(hidden)
        logits[..., self._more_ids] = nn.functional.linear(hidden, self._more_weight)
        return logits


def with_draft_head(view: PreTrainedModel, size: int) -> PreTrainedModel:
    """Return a copy of a view whose head scores the first `size` tokens; return `view` itself if
    its head is no plain layer or has a bias.
    """
    head = view.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or size >= head.out_features:
        return view
    short = DraftHead(head, size)
    return shallow_view.substituted(view, lambda module: short if module is head else None)
