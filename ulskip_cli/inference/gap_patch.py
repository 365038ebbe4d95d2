"""Gap patches: affine maps that correct the hidden states behind skipped layers of a view."""

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ulskip_cli.inference import shallow_view

# kinds with parameters of their own; a folded patch changes a linear layer instead
KINDS = ("low_rank", "full")


class GapPatch(nn.Module):
    """A map `h + f(h)` of hidden states [..., hidden_size]; `f` is a full matrix or one of low
    rank, with a bias.
    """

    def __init__(self, kind: str, hidden_size: int, rank: int = 0) -> None:
        """Make a patch that changes nothing, so that training can start from it."""
        super().__init__()
        self.kind = kind
        if kind == "low_rank":
            self.down = nn.Linear(hidden_size, rank, bias=False)
        self.linear = nn.Linear(rank if kind == "low_rank" else hidden_size, hidden_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "GapPatch":
        """Make a patch from the tensors of its `state_dict`; their names determine its kind."""
        if "down.weight" in tensors:
            rank, hidden_size = tensors["down.weight"].shape
            patch = cls("low_rank", hidden_size, rank)
        else:
            patch = cls("full", len(tensors["linear.bias"]))
        patch.load_state_dict(dict(tensors))
        return patch

    def forward(self, hidden: Tensor) -> Tensor:
        """Correct hidden states [..., hidden_size]."""
        # In training, patches are in float32 and the model may be in bfloat16.
        x = hidden.to(self.linear.weight.dtype)
        correction: Tensor = self.linear(self.down(x) if self.kind == "low_rank" else x)
        return hidden + correction.to(hidden.dtype)


def patched_layer(
    layer: nn.Module, before: nn.Module | None, after: nn.Module | None = None
) -> nn.Module:
    """Return a copy of a decoder layer that applies patches to its input and output; it shares the
    layer's weights.
    """
    patches = {"patch_before": before, "patch_after": after}
    children = {name: patch for name, patch in patches.items() if patch is not None}
    return shallow_view.as_subclass(layer, _patched_class, children) if children else layer


@functools.cache
def _patched_class(source: Any) -> type:
    class PatchedLayer(source):  # type: ignore[misc]
        """A decoder layer with patches."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            before, after = self._modules.get("patch_before"), self._modules.get("patch_after")
            if before is not None and args:
                args = (before(args[0]), *args[1:])
            elif before is not None:
                kwargs["hidden_states"] = before(kwargs["hidden_states"])
            output = super().forward(*args, **kwargs)
            if after is None:
                return output
            return (after(output[0]), *output[1:]) if isinstance(output, tuple) else after(output)

    return PatchedLayer
