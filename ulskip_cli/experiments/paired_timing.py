"""Measure speedups: time the full model and a schedule alternately on the same prompts in one
process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from torch import Tensor

from ulskip_cli.core.config_schema import Config, SpeedConfig
from ulskip_cli.core.cpu_load import LoadMeter
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.experiments.record import Pairs, Side, Timing
from ulskip_cli.experiments.statistics import median_interval
from ulskip_cli.experiments.workload import Workload, timed_prompts
from ulskip_cli.inference.batching import BatchSize, run_with_oom_retry

MIN_LOAD_SECONDS = 0.5  # of timed pairs; the load of a shorter time says little
SIDE_KEYS = ("engine", "linear_backend", "compiled")


@dataclass(frozen=True)
class TimedPairs:
    """The outputs of all timed pairs: `full[i]` and `strategy[i]` are one pair."""

    full: list[BatchOutput]  # empty if only the schedule was timed
    strategy: list[BatchOutput]
    compile_seconds: float = 0.0  # of the schedule's steps, warm-up included
    batch_size: int = 0  # smaller than requested if a batch did not fit into memory
    other_cpus: float | None = None  # that other processes used meanwhile

    def ratios(self, seconds: Callable[[BatchOutput], float]) -> list[float]:
        """Return, for every pair, the full model's seconds divided by the schedule's seconds."""
        return [seconds(a) / seconds(b) for a, b in zip(self.full, self.strategy, strict=True)]

    def timing(self) -> Timing:
        """Summarize the pairs: median speedups with intervals, raw seconds, times of prefill and
        decode, and KV cache bytes.
        """
        ratios: dict[str, float] = {}
        if self.full:
            for key, seconds in (
                ("measured_speedup", _seconds_per_token),
                ("end_to_end_speedup", _total_seconds_per_token),
            ):
                interval = median_interval(self.ratios(seconds))
                ratios |= {
                    key: interval.median,
                    f"{key}_low": interval.low,
                    f"{key}_high": interval.high,
                }
                ratios["speedup_interval_coverage"] = interval.coverage
        sides = (
            {"full": self.full, "strategy": self.strategy}
            if self.full
            else {"strategy": self.strategy}
        )
        return Timing(
            **ratios,
            pairs=Pairs(**{name: Side(**_raw(outputs)) for name, outputs in sides.items()}),
            timed_batch_size=self.batch_size,
            other_cpus=self.other_cpus,
            prefill_seconds=median(output.prefill_seconds for output in self.strategy),
            time_to_first_token_seconds=median(
                output.first_token_seconds for output in self.strategy
            ),
            time_per_output_token_seconds=median(output.step_seconds for output in self.strategy),
            prompt_kv_bytes=max(output.prompt_kv_bytes for output in self.strategy),
            kept_kv_bytes=max(output.kept_kv_bytes for output in self.strategy),
        )


def time_pairs(
    full: Decoder | None,
    strategy: Decoder,
    workload: Workload,
    config: Config,
    progress: ProgressCallback,
) -> TimedPairs:
    """Time a schedule in pairs with the full model, or alone if `full` is None; halve batches that
    do not fit into memory.
    """
    size, total = BatchSize(config.batch_size), config.speed.warmup + config.speed.pairs
    context = DecodeContext(config.decoding, workload.pad_token_id, config.seed)

    def measure(batch_size: int) -> TimedPairs:
        batches = timed_prompts(workload, batch_size, total, strategy.model, config)
        report = progress.phase(f"{config.strategy.name}: timed pairs", total)
        return replace(
            measure_pairs(full, strategy, batches, context, config.speed, report),
            batch_size=batch_size,
        )

    return run_with_oom_retry(size, measure)


def measure_pairs(
    full: Decoder | None,
    strategy: Decoder,
    batches: Sequence[tuple[Tensor, Tensor]],
    context: DecodeContext,
    speed: SpeedConfig,
    on_pair: Callable[[int], None] = lambda done: None,
) -> TimedPairs:
    """Time both decoders on the same `batches` of (input_ids, attention_mask), each [batch,
    prompt_len], used in turn.

    Both generate exactly `speed.new_tokens` tokens with EOS suppressed. With drafts or early exit
    they stop at EOS, because acceptance and confidence mean nothing past the end. The decoder that
    starts alternates between pairs. The full model decodes without drafts. Raises RunError if the
    decoders used different linear backends or, without drafts and early exit, if they differ in
    engine or compilation; decoders that were asked for different engines may differ.
    """
    forced = None if context.decoding.draft_tokens or strategy.exits else speed.new_tokens
    limited = replace(context, decoding=context.decoding.replace(max_new_tokens=speed.new_tokens))
    sides = [(strategy, limited)]
    if full:
        sides.insert(0, (full, replace(limited, decoding=limited.decoding.without_drafts())))
    timed: list[list[BatchOutput]] = [[] for _ in sides]
    compile_seconds = 0.0
    meter = LoadMeter()
    for i in range(speed.warmup + speed.pairs):
        ids, mask = batches[i % len(batches)]
        pair: dict[int, BatchOutput] = {}
        if i == speed.warmup:
            meter = LoadMeter()
        for side in range(len(sides)) if i % 2 == 0 else reversed(range(len(sides))):
            decoder, how = sides[side]
            output = decoder.generate(ids, mask, how, forced_length=forced)
            if side == len(sides) - 1:
                compile_seconds += output.compile_seconds
            if (
                output.compile_seconds
            ):  # the first run after compiling is slower than the later ones
                output = decoder.generate(ids, mask, how, forced_length=forced)
            pair[side] = output
        if full and full.asked_engine == strategy.asked_engine:
            _check_alike(pair[0], pair[1])
        for side, output in pair.items() if i >= speed.warmup else ():
            timed[side].append(output)
        on_pair(i + 1)
    return TimedPairs(
        timed[0] if full else [],
        timed[-1],
        compile_seconds,
        other_cpus=meter.other_cpus(MIN_LOAD_SECONDS),
    )


def _check_alike(full: BatchOutput, strategy: BatchOutput) -> None:
    """Raise RunError if `SIDE_KEYS` differ between the outputs; with drafts or early exit check
    only the linear backend.
    """
    own_engine = strategy.drafts is not None or strategy.exits is not None
    for key in ("linear_backend",) if own_engine else SIDE_KEYS:
        ran, other = getattr(full, key), getattr(strategy, key)
        if ran != other:
            raise RunError(
                f"expected the same {key} for both runs of a timed pair, got {ran} for the full"
                f" model and {other} for the schedule; engine=transformers runs both on one engine"
            )


def _seconds_per_token(output: BatchOutput) -> float:
    return output.decode_seconds / max(1, output.decoded_tokens)


def _total_seconds_per_token(output: BatchOutput) -> float:
    return output.total_seconds / output.generated_tokens


def _raw(outputs: Sequence[BatchOutput]) -> dict[str, Any]:
    keys = ("prefill_seconds", "first_token_seconds", "decode_seconds")
    seconds = {key: [round(getattr(output, key), 6) for output in outputs] for key in keys}
    tokens = {
        key: [getattr(output, key) for output in outputs]
        for key in ("decoded_tokens", "generated_tokens")
    }
    return {**seconds, **tokens, **{key: getattr(outputs[0], key) for key in SIDE_KEYS}}
