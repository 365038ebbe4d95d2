"""Measure speedups: time the full model and a schedule alternately on the same prompts in one
process, several engines in the same rounds, and decode steps of several depths to find the depth
that meets a target speedup.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import NamedTuple

from ulskip_cli.core import schedule
from ulskip_cli.core.config_schema import Config, SpeedConfig
from ulskip_cli.core.environment import LoadMeter
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import BatchOutput, take_turns
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.experiments.record import Pairs, Row, Side, Timing
from ulskip_cli.experiments.statistics import MedianInterval, median_interval
from ulskip_cli.experiments.workload import Batch, Workload, decode_context, timed_prompts
from ulskip_cli.inference.batching import BatchSize, run_with_oom_retry
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.inference.skip_adapter import zero_adapter
from ulskip_cli.strategies.cost import LatencyFit
from ulskip_cli.strategies.plan import Plan, make_plan

MIN_LOAD_SECONDS = 0.5  # of timed pairs; the load of a shorter time says little
SIDE_KEYS = ("engine", "linear_backend", "compiled")
# Decode time of the slower side before the other continues; much shorter turns would measure the
# loading of weights into the processor's cache.
TURN_SECONDS = 0.2
NEW_TOKENS = 24  # generated for each sequence when depths are timed
LINE_ROUNDS, WARM_UP = 3, 1
MEET_ROUNDS, MEET_PAIRS = 8, 5
CLOSE = 0.0075  # relative error of the speedup that ends the search


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
        return median_interval(_ratios(self.reference, side))

    def timing(self) -> Timing:
        """Summarize the pairs: median speedups with intervals, raw seconds, times of prefill and
        decode, and KV cache bytes.
        """
        outputs, speedups = self.strategy, dict[str, float]()
        if self.full:
            decode = median_interval(_ratios(self.full, outputs))
            total = median_interval(
                _ratios(self.full, outputs, lambda o: o.total_seconds / o.generated_tokens)
            )
            speedups = {
                **decode.row("measured_speedup"),
                **total.row("end_to_end_speedup"),
                "speedup_interval_coverage": decode.coverage,
            }
        return Timing(
            **speedups,
            pairs=Pairs(strategy=_side(outputs), full=_side(self.full) if self.full else None),
            timed_batch_size=self.batch_size,
            other_cpus=self.other_cpus,
            prefill_seconds=median(output.prefill_seconds for output in outputs),
            time_to_first_token_seconds=median(output.first_token_seconds for output in outputs),
            time_per_output_token_seconds=median(output.step_seconds for output in outputs),
            prompt_kv_bytes=max(output.prompt_kv_bytes for output in outputs),
            kept_kv_bytes=max(output.kept_kv_bytes for output in outputs),
        )


class Pair(NamedTuple):
    """The two sides of a timed pair: the full model (or None) and the schedule, on the same
    `batches` of (input_ids, attention_mask), each [batch, prompt_len]; rounds use them in turn.
    """

    full: Decoder | None
    strategy: Decoder
    batches: Sequence[Batch]
    context: DecodeContext

    def run(
        self, number: int, new_tokens: int, pause_every: int | None
    ) -> tuple[BatchOutput | None, BatchOutput, float]:
        """Decode the batch of round `number` with both sides, in turns of `pause_every` steps, and
        return the outputs and the seconds of compiling.

        Both sides generate exactly `new_tokens` tokens with EOS suppressed. With drafts or early
        exit they stop at EOS, because acceptance and confidence mean nothing past the end. The
        side that starts alternates between rounds; the full model decodes without drafts. Raises
        RunError if the sides used different linear backends or, without drafts and early exit, if
        they differ in engine or compilation; decoders that were asked for different engines may
        differ.
        """
        decoding = self.context.decoding.replace(max_new_tokens=new_tokens)
        forced = None if decoding.draft_tokens or self.strategy.exits else new_tokens
        batch = self.batches[number % len(self.batches)]
        sides = [(self.strategy, decoding)]
        if self.full:
            sides.append((self.full, decoding.without_drafts()))
        order = 1 if number % 2 else -1

        def generate() -> list[BatchOutput]:
            runs = [
                side.run(
                    *batch,
                    replace(self.context, decoding=own),
                    forced_length=forced,
                    pause_every=pause_every,
                )
                for side, own in sides
            ]
            return take_turns(runs[::order])[::order]

        outputs = generate()
        seconds = outputs[0].compile_seconds
        if any(output.compile_seconds for output in outputs):
            outputs = generate()  # the first run after compiling is slower
        strategy, *others = outputs
        full = others[0] if others else None
        if self.full and full and self.full.asked == self.strategy.asked:
            has_method = strategy.drafts is not None or strategy.exits is not None
            for key in ("linear_backend",) if has_method else SIDE_KEYS:
                values = getattr(full, key), getattr(strategy, key)
                if values[0] != values[1]:
                    raise RunError(
                        f"expected the same {key} for both runs of a timed pair, got {values[0]}"
                        f" for the full model and {values[1]} for the schedule; use"
                        " engine=transformers"
                    )
        return full, strategy, seconds

    def turn(self, full: BatchOutput | None, strategy: BatchOutput) -> int | None:
        """Return the decode steps of a turn from earlier outputs; None if the sides decode one
        after the other: on a GPU, or if one decoder, which holds one batch at a time, is both.
        """
        if full is None or self.full is self.strategy or self.strategy.device.type != "cpu":
            return None
        return turn_steps([full, strategy])


def turn_steps(outputs: Sequence[BatchOutput]) -> int:
    """Return the decode steps of a turn from earlier outputs of the sides."""
    slower = max(output.step_seconds for output in outputs)
    return max(1, round(TURN_SECONDS / max(slower, 1e-9)))


def measure_rounds(
    pairs: Sequence[Pair],
    speed: SpeedConfig,
    on_pair: Callable[[int], None] = lambda done: None,
    read_rate: Callable[[], float] | None = None,
) -> list[TimedPairs]:
    """Time every pair once in each round, in alternating order, so that any two sides can be
    compared within rounds; return the measurements of each pair.

    On a CPU the sides of a pair decode some steps in turn, because its speed changes within
    seconds. `on_pair` gets the number of timed pairs. `read_rate` is called once a round, and
    measures the bytes/s at which memory is read. The full model of the first pair is the reference
    of all.
    """
    timed = [TimedPairs([], []) for _ in pairs]
    turns: list[int | None] = [None for _ in pairs]
    rates: list[float] = []
    meter, num_timed = LoadMeter(), 0
    for number in range(speed.warmup + speed.pairs):
        if number == speed.warmup:
            meter = LoadMeter()
        for i in range(len(pairs)) if number % 2 == 0 else reversed(range(len(pairs))):
            full, strategy, seconds = pairs[i].run(number, speed.new_tokens, turns[i])
            turns[i] = pairs[i].turn(full, strategy)
            timed[i] = replace(timed[i], compile_seconds=timed[i].compile_seconds + seconds)
            if number >= speed.warmup:
                timed[i].full.extend([full] if full else [])
                timed[i].strategy.append(strategy)
            num_timed += 1
            on_pair(num_timed)
        if read_rate and number >= speed.warmup:
            rates.append(read_rate())
    cpus = meter.other_cpus(MIN_LOAD_SECONDS)
    reference = timed[0].full if len(pairs) > 1 else []
    return [replace(pair, other_cpus=cpus, read_rates=rates, reference=reference) for pair in timed]


def time_pairs(
    full: Decoder | None,
    strategy: Decoder,
    workload: Workload | None,
    config: Config,
    progress: ProgressCallback,
) -> TimedPairs:
    """Time a schedule in pairs with the full model, or alone if `full` is None; halve batches that
    do not fit into memory.
    """

    def measure(batch_size: int) -> TimedPairs:
        batches = timed_prompts(workload, batch_size, rounds, strategy.model, config)
        report = progress.phase(f"{config.strategy.name}: timed pairs", rounds)
        pair = Pair(full, strategy, batches, decode_context(config, workload))
        return replace(measure_rounds([pair], config.speed, report)[0], batch_size=batch_size)

    rounds = config.speed.warmup + config.speed.pairs
    return run_with_oom_retry(BatchSize(config.batch_size), measure)


def _seconds_per_token(output: BatchOutput) -> float:
    return output.decode_seconds / max(1, output.decoded_tokens)


def _ratios(
    full: Sequence[BatchOutput],
    strategy: Sequence[BatchOutput],
    seconds: Callable[[BatchOutput], float] = _seconds_per_token,
) -> list[float]:
    return [seconds(a) / seconds(b) for a, b in zip(full, strategy, strict=True)]


def _side(outputs: Sequence[BatchOutput]) -> Side:
    values: Row = {key: getattr(outputs[0], key) for key in SIDE_KEYS}
    for key in ("prefill_seconds", "first_token_seconds", "decode_seconds"):
        values[key] = [round(getattr(output, key), 6) for output in outputs]
    for key in ("decoded_tokens", "generated_tokens"):
        values[key] = [getattr(output, key) for output in outputs]
    if outputs[0].drafts:
        lengths = (output.drafts.mean_length or 0 for output in outputs if output.drafts)
        values["draft_lengths"] = [round(length, 3) for length in lengths]
    return Side(**values)


@dataclass(frozen=True)
class LatencyTargetFit:
    """The mean depth that meets a target speedup on this machine."""

    depth: float  # mean layers per decode step
    fit: LatencyFit
    offset: float  # measured minus fitted time of a step, as a share of the time of a full step
    trials: tuple[dict[str, float], ...]  # mean depths, and the median speedups of their pairs

    def as_dict(self) -> Row:
        """Return the fit as a row stores it, with the speedup that it predicts for `depth`."""
        return {
            **asdict(self.fit),
            "depth": self.depth,
            "offset": self.offset,
            "trials": list(self.trials),
            "speedup": 1 / (self.fit.share(self.depth) + self.offset),
        }


def fit_step_latency(
    make_decoder: Callable[[Plan], Decoder],
    num_layers: int,
    batches: Sequence[Batch],
    context: DecodeContext,
    on_depth: Callable[[int], None] = lambda done: None,
) -> LatencyFit:
    """Time decode steps at several depths in turn, and fit a straight line to the seconds.

    `batches` are (input_ids, attention_mask) pairs, each [batch, prompt_len]; the rounds use them
    in turn. `on_depth` gets the number of timed depths, each counted in every round.
    """
    depths = counts(num_layers)
    decoders = [make_decoder(_plan(num_layers, depth)) for depth in depths]
    pairs = [Pair(None, decoder, batches, context) for decoder in decoders]
    rounds = SpeedConfig(pairs=LINE_ROUNDS, warmup=WARM_UP, new_tokens=NEW_TOKENS)
    timed = measure_rounds(pairs, rounds, on_depth)
    seconds = [median(output.step_seconds for output in pair.strategy) for pair in timed]
    return LatencyFit.of(num_layers, dict(zip(depths, seconds, strict=True)))


def solve_depth_for_speedup(
    fit: LatencyFit,
    target_speedup: float,
    measured: Callable[[float], tuple[float, Sequence[float]]],
    rounds: int = MEET_ROUNDS,
) -> LatencyTargetFit:
    """Find the depth that meets a target speedup: start from the depth that `fit` predicts, and
    correct it by timed pairs.

    `measured(depth)` times pairs near that depth and returns the actual mean depth and the speedup
    of every pair. Raises NotApplicable, a UsageError, if the target cannot be reached.
    """
    fit.check(target_speedup)
    depth, offset = fit.depth(target_speedup), 0.0
    offsets: list[float] = []
    trials: list[dict[str, float]] = []
    for i in range(rounds):
        had, ratios = measured(depth)
        trials.append({"depth": had, "speedup": median(ratios)})
        offsets += [1 / ratio - fit.share(had) for ratio in ratios]
        interval = median_interval(offsets)
        offset, before, depth = interval.median, depth, fit.depth(target_speedup, interval.median)
        errors = (interval.high - interval.low) / 2, abs(fit.share(depth) - fit.share(before))
        if i and max(errors) * target_speedup <= CLOSE:
            break
    return LatencyTargetFit(depth, fit, offset, tuple(trials))


def make_pair_timer(
    loaded: LoadedModel,
    workload: Workload | None,
    config: Config,
    on_pair: Callable[[int], None] = lambda done: None,
) -> Callable[[float], tuple[float, Sequence[float]]]:
    """Return the `measured` function of `solve_depth_for_speedup`; it times the full model and the
    plan of a depth.

    The plan runs with patches that change nothing, because patches cannot be computed before the
    layers are known.
    """
    model, context = loaded.model, decode_context(config, workload)
    batches = timed_prompts(workload, config.batch_size, WARM_UP + MEET_PAIRS, model, config)
    decoders: dict[tuple[tuple[int, ...], ...], Decoder] = {}

    def decoder(plan: Plan) -> Decoder:
        sets = tuple(stage.kept_layers for stage in plan.stages)
        if sets not in decoders:
            is_full = config.correction.patch_kind(config.model) == "full" and not plan.keeps_all
            adapter = zero_adapter(model, plan.skipping_sets, "full") if is_full else None
            decoders[sets] = Decoder(model, plan, adapter=adapter, engine=config.engine)
        later = plan.later_stages
        return decoders[sets].with_stage_switch(later[0].first_step) if later else decoders[sets]

    def measured(depth: float) -> tuple[float, Sequence[float]]:
        plan = make_plan(config, loaded.metadata, depth)
        full = decoder(_plan(plan.num_layers, plan.num_layers))
        few = config.speed.replace(pairs=MEET_PAIRS, warmup=1)
        (pairs,) = measure_rounds([Pair(full, decoder(plan), batches, context)], few, on_pair)
        mean = plan.mean_kept(config.speed.new_tokens - 1)
        return mean, _ratios(pairs.full, pairs.strategy)

    return measured


def counts(num_layers: int) -> list[int]:
    """Return the numbers of kept layers that `fit_step_latency` times.

    >>> counts(30)
    [30, 20, 10, 2]
    """
    third = num_layers // 3
    return sorted(
        {num_layers, 2 * num_layers // 3, third, schedule.MIN_KEPT} - {0, 1}, reverse=True
    )


def _plan(num_layers: int, count: int) -> Plan:
    return Plan.from_layers(num_layers, schedule.even(num_layers, count))
