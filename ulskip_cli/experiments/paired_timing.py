"""Measure speedups: time the full model and a schedule alternately on the same prompts in one
process, and several engines in the same rounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

from ulskip_cli.core.config_schema import Config, DecodingConfig, SpeedConfig
from ulskip_cli.core.cpu_load import LoadMeter
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.experiments.record import Pairs, Side, Timing
from ulskip_cli.experiments.statistics import MedianInterval, median_interval
from ulskip_cli.experiments.workload import Batch, Workload, timed_prompts
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
    read_rates: Sequence[float] = ()  # bytes/s of reading memory in each round
    reference: Sequence[BatchOutput] = ()  # the full model of the first engine, in each round

    def over_reference(self, side: Sequence[BatchOutput]) -> MedianInterval:
        """Return the tokens/s of a side divided by the reference's in the same round: median and
        interval.
        """
        return median_interval(
            [
                _seconds_per_token(reference) / _seconds_per_token(output)
                for reference, output in zip(self.reference, side, strict=True)
            ]
        )

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

    def measure(batch_size: int) -> TimedPairs:
        batches = timed_prompts(workload, batch_size, rounds, strategy.model, config)
        report = progress.phase(f"{config.strategy.name}: timed pairs", rounds)
        return replace(
            measure_pairs(full, strategy, batches, context, config.speed, report),
            batch_size=batch_size,
        )

    rounds = config.speed.warmup + config.speed.pairs
    context = DecodeContext(config.decoding, workload.pad_token_id, config.seed)
    return run_with_oom_retry(BatchSize(config.batch_size), measure)


def measure_pairs(
    full: Decoder | None,
    strategy: Decoder,
    batches: Sequence[Batch],
    context: DecodeContext,
    speed: SpeedConfig,
    on_pair: Callable[[int], None] = lambda done: None,
) -> TimedPairs:
    """Time both decoders on the same `batches` of (input_ids, attention_mask), each [batch,
    prompt_len]. Pairs use the batches in turn; the full model decodes without drafts.
    """
    (timed,) = measure_rounds([Pair(full, strategy, batches, context)], speed, on_pair)
    return timed


class Pair(NamedTuple):
    """The two sides of a timed pair: the full model (or None) and the schedule, on the same
    prompts.
    """

    full: Decoder | None
    strategy: Decoder
    batches: Sequence[Batch]
    context: DecodeContext

    def run(self, number: int, new_tokens: int) -> tuple[BatchOutput | None, BatchOutput, float]:
        """Decode the batch of round `number` with both sides, and return the outputs and the
        seconds of compiling.

        Both sides generate exactly `new_tokens` tokens with EOS suppressed. With drafts or early
        exit they stop at EOS, because acceptance and confidence mean nothing past the end. The
        side that starts alternates between rounds. Raises RunError if the sides used different
        linear backends or, without drafts and early exit, if they differ in engine or compilation;
        decoders that were asked for different engines may differ.
        """
        decoding = self.context.decoding.replace(max_new_tokens=new_tokens)
        forced = None if decoding.draft_tokens or self.strategy.exits else new_tokens
        ids, mask = self.batches[number % len(self.batches)]

        def decode(decoder: Decoder, decoding: DecodingConfig) -> tuple[BatchOutput, float]:
            context = replace(self.context, decoding=decoding)
            output = decoder.generate(ids, mask, context, forced_length=forced)
            if seconds := output.compile_seconds:  # the first run after compiling is slower
                output = decoder.generate(ids, mask, context, forced_length=forced)
            return output, seconds

        first = decode(self.strategy, decoding) if number % 2 else None
        full = decode(self.full, decoding.without_drafts())[0] if self.full else None
        strategy, compile_seconds = first or decode(self.strategy, decoding)
        if self.full and full and self.full.asked_engine == self.strategy.asked_engine:
            _check_alike(full, strategy)
        return full, strategy, compile_seconds


def measure_rounds(
    pairs: Sequence[Pair],
    speed: SpeedConfig,
    on_round: Callable[[int], None] = lambda done: None,
    read_rate: Callable[[], float] | None = None,
) -> list[TimedPairs]:
    """Time every pair once in each round, in alternating order, so that any two sides can be
    compared within rounds; return the measurements of each pair.

    `read_rate` is called once a round, and measures the bytes/s at which memory is read. The full
    model of the first pair is the reference of all.
    """
    timed = [TimedPairs([], []) for _ in pairs]
    rates: list[float] = []
    meter = LoadMeter()
    for number in range(speed.warmup + speed.pairs):
        if number == speed.warmup:
            meter = LoadMeter()
        for i in range(len(pairs)) if number % 2 == 0 else reversed(range(len(pairs))):
            full, strategy, seconds = pairs[i].run(number, speed.new_tokens)
            timed[i] = replace(timed[i], compile_seconds=timed[i].compile_seconds + seconds)
            if number >= speed.warmup:
                timed[i].full.extend([full] if full else [])
                timed[i].strategy.append(strategy)
        if read_rate and number >= speed.warmup:
            rates.append(read_rate())
        on_round(number + 1)
    cpus = meter.other_cpus(MIN_LOAD_SECONDS)
    reference = timed[0].full if len(pairs) > 1 else []
    return [replace(pair, other_cpus=cpus, read_rates=rates, reference=reference) for pair in timed]


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
