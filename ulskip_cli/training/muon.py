"""One optimizer that uses Muon (Jordan et al. 2024: orthogonalized momentum) for matrices and AdamW
for other weights.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Two torch optimizers that share parameter groups, so that schedulers and checkpoints handle
    them as one optimizer.
    """

    def __init__(
        self, module: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> None:
        """Assign hidden matrices to Muon, with updates scaled like AdamW's, and embeddings, head
        and vectors to AdamW.
        """
        embeddings = {
            id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
        }
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        matrices = [
            p
            for n, p in trained.items()
            if p.ndim == 2 and id(p) not in embeddings and "lm_head" not in n
        ]
        chosen = {id(p) for p in matrices}
        others = [p for p in trained.values() if id(p) not in chosen]
        self._optimizers: list[Optimizer] = []
        if others:
            self._optimizers.append(AdamW(others, lr=lr, weight_decay=0.0, betas=betas, fused=True))
        if matrices:
            self._optimizers.append(
                Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        super().__init__(groups, {})
        self._share_groups_and_state()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step with both optimizers."""
        for optimizer in self._optimizers:
            optimizer.step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both optimizers."""
        super().load_state_dict(state_dict)
        self._share_groups_and_state()

    def _share_groups_and_state(self) -> None:
        """Let both optimizers use this optimizer's groups and state, because schedulers change only
        this optimizer.
        """
        start = 0
        for optimizer in self._optimizers:
            optimizer.param_groups = self.param_groups[start : start + len(optimizer.param_groups)]
            optimizer.state = self.state
            start += len(optimizer.param_groups)


class MuonFactory:
    """A factory through which transformers' Trainer builds an optimizer from the whole model."""

    def __call__(self, module: nn.Module, **options: Any) -> Optimizer:
        """Build the optimizer of a module."""
        return MuonWithAdamW(module, **options)
