"""Measure speedups: time the full model and a schedule alternately on the same prompts.

A measurement consists of units of consecutive pairs. They go on until the interval is narrow enough
or the time is spent.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import NamedTuple

import psutil
import torch

from ulskip_cli.core.answer import Request
from ulskip_cli.core.config_schema import SpeedConfig
from ulskip_cli.core.environment import LoadMeter
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.files import JsonObject, timestamp
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import BatchOutput, Prompts, Views, Watch, take_turns
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.loop import synchronized_time
from ulskip_cli.experiments.evaluate import Workload
from ulskip_cli.experiments.intervals import UNITS
from ulskip_cli.experiments.record import Pairs, Side, Timing, Unit
from ulskip_cli.inference.batching import BatchSize, run_with_oom_retry

MIN_LOAD_SECONDS = 0.5  # of timed pairs; the load of a shorter time says little
SIDE_KEYS = ("engine", "linear_backend")
# Decode time of the slower side before the other continues; much shorter turns would measure the
# loading of weights into the processor's cache, and ratios of whole batches in turn spread more.
TURN_SECONDS = 0.2
UNIT_SHARE = 0.07  # of speed.seconds: the time of a unit, in which MAX_PAIRS are timed at most
MAX_PAIRS = 30
BATCHES = 8  # different batches of prompts that are timed
READ_BYTES = 2**29  # larger than any cache
READ_MEMORY_SHARE = 0.25  # at most this share of free memory is read
STREAMS = 1, 2, 4, 8  # places that a thread reads in turn; which number is fastest differs


@dataclass(frozen=True)
class TimedPairs:
    """The outputs of all timed pairs: `full[i]` and `strategy[i]` are one pair."""

    full: tuple[BatchOutput, ...] = ()  # empty if only the schedule was timed
    strategy: tuple[BatchOutput, ...] = ()
    units: tuple[Unit, ...] = ()
    precision: float | None = None  # asked for
    compile_seconds: float = 0.0  # of the schedule's steps, warm-up included
    batch_size: int = 0  # smaller than requested if a batch did not fit into memory
    other_cpus: float | None = None  # that other processes used meanwhile

    @property
    def pairs(self) -> Pairs:
        """Return all pairs in the form in which a row stores them."""
        full = _side(self.full) if self.full else None
        strategy = _side(self.strategy)
        return Pairs(strategy=strategy, full=full, units=self.units, precision=self.precision)

    def timing(self) -> Timing:
        """Summarize the pairs: speedups with intervals, raw seconds, times of prefill and decode,
        and KV cache bytes.
        """
        outputs = self.strategy
        return Timing(
            **self.pairs.speedups(),
            pairs=self.pairs,
            timed_batch_size=self.batch_size,
            other_cpus=self.other_cpus,
            prefill_seconds=median(output.prefill_seconds for output in outputs),
            time_to_first_token_seconds=median(output.first_token_seconds for output in outputs),
            time_per_output_token_seconds=median(output.step_seconds for output in outputs),
            # transformers does not tell them with its own drafts
            prompt_kv_bytes=max(output.prompt_kv_bytes for output in outputs) or None,
            kept_kv_bytes=max(output.kept_kv_bytes for output in outputs) or None,
        )


class Pair(NamedTuple):
    """The two sides of a timed pair: the full model (or None) and the schedule, on the same
    `batches`, which rounds use in turn.
    """

    full: Decoder | None
    strategy: Decoder
    batches: Sequence[Prompts]
    request: Request  # of the schedule; the full model decodes without drafts

    def run(
        self, number: int, pause_every: int | None
    ) -> tuple[BatchOutput | None, BatchOutput, float]:
        """Decode the batch of round `number` with both sides, in turns of `pause_every` steps, and
        return the outputs and the seconds of compiling.

        The side that starts alternates between rounds. Raises RunError if the sides used different
        engines or linear backends; decoders that were asked for different engines may differ.
        """
        prompts = self.batches[number % len(self.batches)]
        sides = [(self.strategy, self.request)]
        if self.full:
            decoding = self.request.decoding.without_drafts()
            sides.append((self.full, replace(self.request, decoding=decoding)))
        order = 1 if number % 2 else -1  # -1: the full model starts
        watch = Watch(pause_every=pause_every)

        def generate() -> list[BatchOutput]:
            runs = [decoder.run(prompts, request, watch) for decoder, request in sides]
            return take_turns(runs[::order])[::order]

        outputs = generate()
        seconds = outputs[0].compile_seconds
        if any(output.compile_seconds for output in outputs):
            outputs = generate()  # the first run after compiling is slower
        strategy, *others = outputs
        full = others[0] if others else None
        if self.full and full and self.full.requested_engine == self.strategy.requested_engine:
            _check_same_engine(full, strategy)
        return full, strategy, seconds

    def steps_per_turn(self, full: BatchOutput | None, strategy: BatchOutput) -> int | None:
        """Return the decode steps of a turn from earlier outputs; None if the sides decode one
        after the other: on a GPU, or if one decoder, which holds one batch at a time, is both.
        """
        if full is None or self.full is self.strategy or self.strategy.device.type != "cpu":
            return None
        slower = max(full.step_seconds, strategy.step_seconds)
        return max(1, round(TURN_SECONDS / max(slower, 1e-9)))


def _check_same_engine(full: BatchOutput, strategy: BatchOutput) -> None:
    """Raise RunError if the sides of a pair used different engines or linear backends."""
    for key in SIDE_KEYS:
        of_full, of_strategy = getattr(full, key), getattr(strategy, key)
        if of_full != of_strategy:
            raise RunError(
                f"expected the same {key} for both runs of a timed pair, got {of_full} for the full"
                f" model and {of_strategy} for the schedule; use engine=transformers"
            )


def measure_pairs(pair: Pair, rounds: range, past: TimedPairs | None = None) -> TimedPairs:
    """Time a pair once for each number of a round. On a CPU its sides decode some steps in turn,
    because its speed changes within seconds; the `past` pairs tell how many steps the first turn
    has.
    """
    steps = None
    if past:
        last_full = past.full[-1] if past.full else None
        steps = pair.steps_per_turn(last_full, past.strategy[-1])
    timed = []
    for number in rounds:
        full, strategy, seconds = pair.run(number, steps)
        steps = pair.steps_per_turn(full, strategy)
        timed.append((full, strategy, seconds))
    fulls, strategies, compiling = zip(*timed, strict=True)
    return TimedPairs(tuple(filter(None, fulls)), strategies, compile_seconds=sum(compiling))


def bandwidth_meter(device: torch.device) -> Callable[[], float]:
    """Return a function that reads a buffer in memory once in several ways, and returns the bytes/s
    of the fastest.
    """
    size = READ_BYTES
    if device.type == "cpu":
        size = min(size, int(READ_MEMORY_SHARE * psutil.virtual_memory().available))
    # float32, whose number is a multiple of the streams
    flat = torch.ones(max(1, size // 32) * 8, device=device)
    reads: list[Callable[[], object]] = [
        *(partial(torch.sum, flat.view(streams, -1), dim=1) for streams in STREAMS),
        partial(torch.amax, flat.view(STREAMS[-1], -1), dim=1),
        partial(torch.dot, *flat.view(2, -1)),
    ]

    def seconds(read: Callable[[], object]) -> float:
        began = synchronized_time(device)
        read()
        return synchronized_time(device) - began

    @torch.inference_mode()
    def measure() -> float:
        return flat.nbytes / min(map(seconds, reads))

    return measure


def measure_units(
    pair: Pair, speed: SpeedConfig, label: str, progress: ProgressCallback
) -> TimedPairs:
    """Time a pair in at least `UNITS` units until the interval of the speedup reaches at most
    `speed.precision` to each side, or `speed.seconds` are spent.

    The first run, which prepares the engines, is not counted. The phase `label` shows the elapsed
    seconds. The rate at which memory is read is measured once a unit.
    """
    last = measure_pairs(pair, range(1))
    pair_seconds = sum(output.total_seconds for output in (*last.full, *last.strategy))
    timed = replace(last, full=(), strategy=(), precision=speed.precision)
    total = max(1, round(speed.seconds))
    report = progress.phase(f"{label}: seconds of timing", total)
    read_rate = bandwidth_meter(pair.strategy.device)
    began, elapsed, meter = time.monotonic(), 0.0, LoadMeter()

    # After the first `UNITS`, a unit that would end after `speed.seconds` is not begun.
    while (num_units := len(timed.units)) < UNITS or not (
        elapsed * (1 + 1 / num_units) > speed.seconds or timed.pairs.is_precise
    ):
        count = min(MAX_PAIRS, max(1, round(UNIT_SHARE * speed.seconds / pair_seconds)))
        unit = Unit(pairs=count, began=timestamp(), bytes_per_second=read_rate())
        first = 1 + len(timed.strategy)
        last = measure_pairs(pair, range(first, first + count), last)
        timed = replace(
            timed,
            full=timed.full + last.full,
            strategy=timed.strategy + last.strategy,
            units=(*timed.units, unit),
            compile_seconds=timed.compile_seconds + last.compile_seconds,
        )
        before, elapsed = elapsed, time.monotonic() - began
        pair_seconds = max(1e-9, (elapsed - before) / count)  # other processes may slow it down
        # The phase ends after its last unit, which can take longer than was asked for.
        report(min(round(elapsed), total - 1), f"{len(timed.units)} of {UNITS} units or more")
    return replace(timed, other_cpus=meter.other_cpus(MIN_LOAD_SECONDS))


def time_pairs(
    make_pair: Callable[[int], Pair],
    batch_size: int,
    speed: SpeedConfig,
    label: str,
    progress: ProgressCallback,
) -> TimedPairs:
    """Time the pair that `make_pair` returns for a batch size; halve batches that do not fit into
    memory. See `measure_units`.
    """

    def measure(size: int) -> TimedPairs:
        timed = measure_units(make_pair(size), speed, label, progress)
        return replace(timed, batch_size=size)

    return run_with_oom_retry(BatchSize(batch_size), measure)


def timed_request(answer: Request, length: int, views: Views) -> Request:
    """Return how both sides of a pair decode prompts that a run answers by `answer`: exactly
    `length` tokens with EOS suppressed. With drafts or early exit they stop at EOS, because
    acceptance and confidence mean nothing past the end.
    """
    ends_at_eos = answer.decoding.draft_tokens or views.exits
    return replace(answer, length=length, fixed_length=not ends_at_eos)


def task_prompts(workload: Workload, new_tokens: int, batch_size: int) -> list[Prompts]:
    """Return batches of a task's prompts, each with room for the new tokens in the context."""
    prompts = workload.prompts
    if workload.max_positions is not None:
        room = max(1, workload.max_positions - new_tokens)
        prompts = [prompt[-room:] for prompt in prompts]
    return prompt_batches(prompts, workload.pad_token_id, batch_size, BATCHES)


def random_prompts(vocab_size: int, length: int, batch_size: int, seed: int) -> list[Prompts]:
    """Return batches of random prompts of one length in tokens."""
    generator = torch.Generator().manual_seed(seed)
    shape = batch_size, length
    batches = [torch.randint(vocab_size, shape, generator=generator) for _ in range(BATCHES)]
    return [Prompts(ids, torch.ones_like(ids)) for ids in batches]


def prompt_batches(
    prompts: Sequence[list[int]], pad_token_id: int, batch_size: int, count: int
) -> list[Prompts]:
    """Return `count` full batches; prompts are repeated if there are too few."""
    endless = itertools.cycle(prompts)
    return [
        Prompts.from_token_ids(list(itertools.islice(endless, batch_size)), pad_token_id)
        for _ in range(count)
    ]


def _side(outputs: Sequence[BatchOutput]) -> Side:
    """Collect the raw values of one side of all timed pairs; seconds are rounded to 1e-6."""
    values: JsonObject = {key: getattr(outputs[0], key) for key in SIDE_KEYS}
    for key in ("prefill_seconds", "first_token_seconds", "decode_seconds"):
        values[key] = [round(getattr(output, key), 6) for output in outputs]
    for key in ("decoded_tokens", "generated_tokens"):
        values[key] = [getattr(output, key) for output in outputs]
    return Side(**values)
