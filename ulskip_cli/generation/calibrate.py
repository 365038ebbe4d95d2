"""A short timing of what layers cost here, for targets that are met by the clock."""

from collections.abc import Callable, Sequence
from statistics import median

from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli import schedule
from ulskip_cli.cost import LatencyFit
from ulskip_cli.generation.decode import Decoder
from ulskip_cli.plan import Plan
from ulskip_cli.schema import DecodingConfig

NEW_TOKENS = 24
ROUNDS, WARM_UP = 7, 2


def calibrate(
    model: PreTrainedModel,
    num_layers: int,
    prompts: Sequence[tuple[Tensor, Tensor]],
    decoding: DecodingConfig,
    pad: int,
    on_round: Callable[[int], None] = lambda done: None,
) -> LatencyFit:
    """Time decode steps at several numbers of kept layers, in turns, and fit a line.

    Args:
        model: the full model, in evaluation mode.
        num_layers: N.
        prompts: (input_ids, attention_mask) of the batch size that matters, each [batch, prompt_len]; used in turn.
        decoding: how tokens are chosen, and by which engine.
        pad: padding id.
        on_round: called with the number of rounds done.
    """
    decoders = {count: Decoder(model, _plan(num_layers, count)) for count in counts(num_layers)}
    seconds: dict[int, list[float]] = {count: [] for count in decoders}
    for i in range(WARM_UP + ROUNDS):
        ids, mask = prompts[i % len(prompts)]
        order = list(decoders)
        for count in order[i % len(order) :] + order[: i % len(order)]:
            output = decoders[count].generate(ids, mask, decoding, pad, forced_length=NEW_TOKENS)
            if i >= WARM_UP:
                seconds[count].append(output.decode_seconds / (NEW_TOKENS - 1))
        on_round(i + 1)
    return LatencyFit.of(num_layers, {count: median(spent) for count, spent in seconds.items()})


def counts(num_layers: int) -> list[int]:
    """The numbers of kept layers that are timed.

    >>> counts(30)
    [30, 20, 10, 2]
    """
    return sorted({num_layers, 2 * num_layers // 3, num_layers // 3, schedule.MIN_KEPT} - {0, 1}, reverse=True)


def _plan(num_layers: int, count: int) -> Plan:
    kept = schedule.even(num_layers, count)
    return Plan("calibration", num_layers, kept, "all", None, num_layers / count, None, None, None, ())
