"""Speed as a ratio: the full model and a schedule take turns on the same prompts in one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ulskip_cli.core.config import without_drafts
from ulskip_cli.core.config_schema import DecodingConfig, SpeedConfig
from ulskip_cli.core.errors import RunError
from ulskip_cli.inference.decoder import Decoder
from ulskip_cli.inference.engines.base import BatchOutput
from ulskip_cli.inference.timing import median_interval

_RATIO_KEYS = tuple(f"{key}{end}" for key in ("measured_speedup", "end_to_end_speedup") for end in ("", "_low", "_high"))


@dataclass(frozen=True)
class PairedSpeed:
    """Raw seconds of every timed pair, and the phases' sizes.

    Attributes:
        full: outputs of the full model, one a pair; empty if the schedule was timed alone.
        strategy: outputs of the schedule, in the same order.
        compile_seconds: that the schedule's steps took to compile, in the warm-up too.
    """

    full: list[BatchOutput]
    strategy: list[BatchOutput]
    compile_seconds: float = 0.0

    def ratios(self, seconds: Callable[[BatchOutput], float]) -> list[float]:
        """Full over strategy, pair by pair."""
        return [seconds(a) / seconds(b) for a, b in zip(self.full, self.strategy, strict=True)]

    def row(self) -> dict[str, Any]:
        """The keys that go into a results row; ratios are None if the schedule was timed alone."""
        if not self.full:
            return {**dict.fromkeys(_RATIO_KEYS), "pairs": {"strategy": _side(self.strategy)}}
        measured = median_interval(self.ratios(lambda output: output.decode_seconds / max(1, output.decoded_tokens)))
        end_to_end = median_interval(self.ratios(lambda output: output.total_seconds / output.generated_tokens))
        ratios = [value for found in (measured, end_to_end) for value in (found.median, found.low, found.high)]
        return {
            **dict(zip(_RATIO_KEYS, ratios, strict=True)),
            "pairs": {"full": _side(self.full), "strategy": _side(self.strategy)},
        }


def measure_pairs(
    full: Decoder | None,
    strategy: Decoder,
    prompts: Sequence[tuple[Tensor, Tensor]],
    decoding: DecodingConfig,
    speed: SpeedConfig,
    pad: int,
    on_pair: Callable[[int], None] = lambda done: None,
) -> PairedSpeed:
    """Alternate the two decoders; who goes first alternates too.

    Both go on to `speed.new_tokens` whatever they say, but with drafts and with exits they end where they end: behind its end a
    text is nothing that a view was made to guess, or a layer to be sure of.

    Args:
        full: every layer; None times the schedule alone, for a run without a baseline.
        strategy: the schedule under test; may be `full` itself, as a measure of the clock's own noise.
        prompts: batches of (input_ids, attention_mask), each [batch, prompt_len]; used in turn.
        decoding: how tokens are chosen; full does without the drafts.
        speed: how many pairs, how many thrown away first, how many tokens each.
        pad: padding id.
        on_pair: called with the number of pairs done, warm-up included.

    Raises:
        RunError: the two sides ran on different linear backends, or differ in engine or compilation without drafts or exits.
    """
    outputs: dict[str, list[BatchOutput]] = {"full": [], "strategy": []}
    compile_seconds = 0.0
    forced = None if decoding.draft_tokens or strategy.exits else speed.new_tokens
    decoding = replace(decoding, max_new_tokens=speed.new_tokens)
    sides = [("full", full, without_drafts(decoding))] if full else []
    sides.append(("strategy", strategy, decoding))
    for i in range(speed.warmup + speed.pairs):
        ids, mask = prompts[i % len(prompts)]
        pair: dict[str, BatchOutput] = {}
        for name, decoder, chosen in sides if i % 2 == 0 else reversed(sides):
            output = decoder.generate(ids, mask, chosen, pad, forced_length=forced)
            compile_seconds += output.compile_seconds if name == "strategy" else 0.0
            if output.compile_seconds:  # the first run after compiling is slower than the later ones
                output = decoder.generate(ids, mask, chosen, pad, forced_length=forced)
            pair[name] = output
        if full:
            _check_alike(pair["full"], pair["strategy"])
        for name, output in pair.items() if i >= speed.warmup else ():
            outputs[name].append(output)
        on_pair(i + 1)
    return PairedSpeed(outputs["full"], outputs["strategy"], compile_seconds)


def _check_alike(full: BatchOutput, strategy: BatchOutput) -> None:
    """Refuse a pair whose ratio would contain more than the schedule's effect.

    Drafts and exits have engines of their own, which never compile.

    Raises:
        RunError: names what differs.
    """
    own_engine = strategy.drafts is not None or strategy.exits is not None
    for key in ("linear_backend",) if own_engine else ("linear_backend", "engine", "compiled"):
        ran, other = getattr(full, key), getattr(strategy, key)
        if ran != other:
            raise RunError(f"no speedup is reported: the full model ran with {key}={ran}, the schedule with {key}={other}")


def _side(outputs: Sequence[BatchOutput]) -> dict[str, Any]:
    """Raw seconds of every pair, and what ran them."""
    keys = ("prefill_seconds", "first_token_seconds", "decode_seconds")
    seconds = {key: [round(getattr(output, key), 6) for output in outputs] for key in keys}
    return {**seconds, **{key: getattr(outputs[0], key) for key in ("engine", "linear_backend", "compiled")}}
