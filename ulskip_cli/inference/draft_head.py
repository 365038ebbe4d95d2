"""The output head of draft steps, which scores a part of the vocabulary."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ulskip_cli.inference import shallow_view


class DraftHead(nn.Module):
    """The logits of the first tokens of the vocabulary and of a batch's prompts; all other tokens get -inf.

    A step then reads a part of the head's weight. Frequent tokens come first in most vocabularies, and answers repeat tokens
    of their prompt. FR-Spec (arXiv:2502.14856) chooses the part by frequencies that are counted before.
    """

    def __init__(self, head: nn.Linear, size: int) -> None:
        super().__init__()
        self.vocab_size, self.size = head.out_features, size
        self.first = nn.Linear(head.in_features, size, bias=head.bias is not None, device="meta")
        self.first.weight = nn.Parameter(head.weight.detach()[:size], requires_grad=False)
        if head.bias is not None:
            self.first.bias = nn.Parameter(head.bias.detach()[:size], requires_grad=False)
        self.weight, self.bias = head.weight, head.bias
        self.begin(torch.empty(0, dtype=torch.long, device=head.weight.device))

    def begin(self, ids: Tensor) -> None:
        """Score the tokens `ids` [any shape] too."""
        self._more_ids = torch.unique(ids[ids >= self.size])
        self._more_weight = self.weight.detach()[self._more_ids]
        self._more_bias = None if self.bias is None else self.bias.detach()[self._more_ids]

    def forward(self, hidden: Tensor) -> Tensor:
        """Multiply `hidden` [..., hidden_size] by the weights of the scored tokens; return [..., vocab_size]."""
        logits = hidden.new_full((*hidden.shape[:-1], self.vocab_size), -torch.inf)
        logits[..., : self.size] = self.first(hidden)
        logits[..., self._more_ids] = nn.functional.linear(hidden, self._more_weight, self._more_bias)
        return logits


def with_draft_head(view: PreTrainedModel, size: int) -> PreTrainedModel:
    """Return a copy of a view whose head scores the first `size` tokens; return `view` itself if its head is no plain layer."""
    head = view.get_output_embeddings()
    if type(head) is not nn.Linear or size >= head.out_features:
        return view
    short = DraftHead(head, size)
    changed = shallow_view.substituted(view, lambda module: short if module is head else None)
    assert isinstance(changed, PreTrainedModel)
    return changed


def draft_head_of(view: nn.Module) -> DraftHead | None:
    """Return the head of draft steps of a view, or None if it has another one."""
    return next((module for module in view.modules() if isinstance(module, DraftHead)), None)
