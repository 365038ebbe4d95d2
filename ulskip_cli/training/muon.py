"""Muon for the matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024) orthogonalizes the momentum of each weight matrix.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Torch's own two optimizers behind one set of parameter groups, so that schedulers and checkpoints see one."""

    def __init__(self, module: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
        """Hidden matrices go to Muon, at AdamW's scale of updates; embeddings, head and vectors to AdamW.

        Args:
            module: whose trained parameters are optimized.
            lr: for both.
            weight_decay: for the matrices.
            betas: AdamW's.
        """
        embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        matrices = [p for n, p in trained.items() if p.ndim == 2 and id(p) not in embeddings and "lm_head" not in n]
        chosen = {id(p) for p in matrices}
        others = [p for p in trained.values() if id(p) not in chosen]
        self._parts: list[Optimizer] = []
        if others:
            self._parts.append(AdamW(others, lr=lr, weight_decay=0.0, betas=betas, fused=True))
        if matrices:
            self._parts.append(Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        groups = [group for part in self._parts for group in part.param_groups]
        super().__init__(groups, {})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Both."""
        for part in self._parts:
            part.step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's groups and state: a scheduler writes to these."""
        start = 0
        for part in self._parts:
            part.param_groups = self.param_groups[start : start + len(part.param_groups)]
            part.state = self.state
            start += len(part.param_groups)


class MuonFactory:
    """What transformers' Trainer calls to build an optimizer that must see the whole model."""

    def __call__(self, module: nn.Module, **options: Any) -> Optimizer:
        """The optimizer for a module."""
        return MuonWithAdamW(module, **options)
