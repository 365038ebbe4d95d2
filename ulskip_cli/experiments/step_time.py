"""The minimal work of a decode step, and a breakdown of its time. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from ulskip_cli.core.weight_sizes import WeightSizes


@dataclass(frozen=True)
class StepWork:
    """The minimal bytes and floating-point operations of one decode step; None if the sizes of the weights are unknown."""

    bytes: int | None  # weights of head and kept layers, and the KV cache halfway through the new tokens
    flops: int | None  # 2 per weight and sequence, without attention over the KV cache

    @classmethod
    def of(
        cls,
        weights: WeightSizes | None,
        parameters: WeightSizes | None,
        runs: Mapping[int, float],
        kv_bytes: float,
        batch_size: int,
        patches: float = 0.0,
    ) -> "StepWork":
        """Sum the work of the output head and of the layers that run.

        `weights` are bytes by layer, `parameters` are counts by layer, and `runs` is the share of steps that run each layer;
        `patches` is the number of patches of a step.
        `kv_bytes` is the KV cache size of one sequence in these layers after half of its new tokens.
        """
        return cls(
            bytes=None if weights is None else round(_sum(weights, runs, patches) + batch_size * kv_bytes),
            flops=None if parameters is None else round(2 * batch_size * _sum(parameters, runs, patches)),
        )


@dataclass(frozen=True)
class StepTimeBreakdown:
    """The seconds of one decode step, divided into output head, layers and the rest."""

    step_seconds: float
    head_seconds: float | None  # final norm and output head, timed separately; None if they cannot be timed
    layers_seconds: float | None  # None if no whole layer is skipped, because the cost of a layer is then unknown

    @property
    def other_seconds(self) -> float | None:
        """Seconds of the rest of the step: embedding, masks, token selection, the loop. Timing noise can make it negative."""
        if self.layers_seconds is None or self.head_seconds is None:
            return None
        return self.step_seconds - self.head_seconds - self.layers_seconds

    def as_dict(self) -> dict[str, float | None]:
        """Return the breakdown as a row stores it."""
        return {
            "step_seconds": self.step_seconds,
            "head_seconds": self.head_seconds,
            "layers_seconds": self.layers_seconds,
            "other_seconds": self.other_seconds,
        }


def layer_seconds(full_seconds: float, strategy_seconds: float, num_layers: float, num_kept: float) -> float | None:
    """Return the seconds that one layer adds to a step (time difference / depth difference); None if the depths are equal.

    >>> layer_seconds(7.0, 4.0, 6, 3)
    1.0
    """
    return None if num_kept == num_layers else (full_seconds - strategy_seconds) / (num_layers - num_kept)


def _sum(sizes: WeightSizes, runs: Mapping[int, float], patches: float) -> float:
    return sizes.head + patches * sizes.patch + sum(share * sizes.layers[layer] for layer, share in runs.items())
