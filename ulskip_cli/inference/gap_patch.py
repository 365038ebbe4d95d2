"""Gap patches: affine maps that correct the hidden states behind skipped layers of a view."""

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ulskip_cli.inference import shallow_view


class GapPatch(nn.Module):
    """A map `h + W h + b` of hidden states [..., hidden_size], with a full matrix `W`. A folded
    patch has no such module, because it changes a linear layer.
    """

    def __init__(self, hidden_size: int) -> None:
        """Make a patch that changes nothing, so that training can start from it."""
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def from_parts(cls, modules: Mapping[str, Mapping[str, Tensor]]) -> "GapPatch":
        """Make a patch from the tensors of its `state_dict`, by module and parameter."""
        tensors = {
            f"{path}.{name}": modules[path][name] for path in modules for name in modules[path]
        }
        patch = cls(len(tensors["linear.bias"]))
        patch.load_state_dict(tensors)
        return patch

    def forward(self, hidden: Tensor) -> Tensor:
        """Correct hidden states [..., hidden_size]."""
        # In training, patches are in float32 and the model may be in bfloat16.
        correction: Tensor = self.linear(hidden.to(self.linear.weight.dtype))
        return hidden + correction.to(hidden.dtype)


def patched_layer(
    layer: nn.Module, before: nn.Module | None, after: nn.Module | None = None
) -> nn.Module:
    """Return a copy of a decoder layer that applies patches to its input and output; it shares the
    layer's weights.
    """
    patches = {"patch_before": before, "patch_after": after}
    children = {name: patch for name, patch in patches.items() if patch is not None}
    if children:
        kind = _patched_class(type(layer))  # type: ignore[arg-type]
        layer = shallow_view.copied(layer, children, kind)
    return layer


@functools.cache
def _patched_class(source: type[nn.Module]) -> type:
    class PatchedLayer(source):  # type: ignore[misc, valid-type]
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
