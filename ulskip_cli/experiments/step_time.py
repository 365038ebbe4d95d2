"""The minimal work of a decode step, and a breakdown of its time. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from ulskip_cli.core.weight_sizes import WeightSizes


@dataclass(frozen=True)
class StepWork:
    """The bytes and operations that one decode step needs at least.

    Attributes:
        bytes: read from memory: the weights of head and kept layers, and every sequence's keys and values halfway
            through its new tokens; None where the weights' sizes are unknown.
        flops: 2 for every weight and sequence, attention over keys and values left out; None likewise.
    """

    bytes: int | None
    flops: int | None

    @classmethod
    def of(
        cls,
        weights: WeightSizes | None,
        parameters: WeightSizes | None,
        runs: Mapping[int, float],
        kv_bytes: float,
        batch_size: int,
    ) -> "StepWork":
        """Sum the work of the layers that run.

        Args:
            weights: bytes by layer.
            parameters: their number by layer.
            runs: by layer, the share of steps that run it.
            kv_bytes: keys and values of one sequence in those layers, halfway.
            batch_size: sequences.
        """
        return cls(
            bytes=None if weights is None else round(_sum(weights, runs) + batch_size * kv_bytes),
            flops=None if parameters is None else round(2 * batch_size * _sum(parameters, runs)),
        )


@dataclass(frozen=True)
class StepTimeBreakdown:
    """The time of one decode step.

    Attributes:
        step_seconds: all of it.
        head_seconds: final norm and output head, timed alone.
        layers_seconds: what the kept layers cost; None where nothing is skipped, so that no layer's cost shows.
    """

    step_seconds: float
    head_seconds: float
    layers_seconds: float | None

    @property
    def other_seconds(self) -> float | None:
        """The rest of the step: embedding, masks, token selection, the loop. A negative value is noise of the clock."""
        return None if self.layers_seconds is None else self.step_seconds - self.head_seconds - self.layers_seconds

    def as_dict(self) -> dict[str, float | None]:
        """The breakdown as a row keeps it."""
        return {
            "step_seconds": self.step_seconds,
            "head_seconds": self.head_seconds,
            "layers_seconds": self.layers_seconds,
            "other_seconds": self.other_seconds,
        }


def layer_seconds(full_seconds: float, strategy_seconds: float, num_layers: float, num_kept: float) -> float | None:
    """Return the seconds that one layer adds to a step, the slope between two depths; None if the depths are equal.

    >>> layer_seconds(7.0, 4.0, 6, 3)
    1.0
    """
    return None if num_kept == num_layers else (full_seconds - strategy_seconds) / (num_layers - num_kept)


def _sum(sizes: WeightSizes, runs: Mapping[int, float]) -> float:
    return sizes.head + sum(share * sizes.layers[layer] for layer, share in runs.items())
