"""Time decode steps of several depths on this machine, and find the depth that meets a target
speedup.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core import schedule
from ulskip_cli.core.config_schema import Config
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.experiments.paired_timing import measure_pairs
from ulskip_cli.experiments.statistics import median_interval
from ulskip_cli.inference.skip_adapter import timing_adapter
from ulskip_cli.strategies.cost import LatencyFit
from ulskip_cli.strategies.plan import Plan

NEW_TOKENS = 24  # generated for each timed sequence
LINE_ROUNDS, WARM_UP = 3, 1
MEET_ROUNDS, MEET_PAIRS = 8, 5
CLOSE = 0.0075  # relative error of the speedup that ends the search

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class DepthMeasurement:
    """The speedup that timed pairs measured at one mean depth."""

    depth: float  # mean layers per decode step
    speedup: float  # median of the pairs


@dataclass(frozen=True)
class LatencyTargetFit:
    """The mean depth that meets a target speedup on this machine."""

    depth: float  # mean layers per decode step
    fit: LatencyFit
    offset: float  # measured minus fitted time of a step, as a share of the time of a full step
    trials: tuple[DepthMeasurement, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fit as a row stores it, with the speedup that it predicts for `depth`."""
        return {
            **asdict(self.fit),
            "residuals": self.fit.residuals,
            "depth": self.depth,
            "offset": self.offset,
            "trials": [asdict(trial) for trial in self.trials],
            "speedup": 1 / (self.fit.share(self.depth) + self.offset),
        }


def fit_step_latency(
    make_decoder: Callable[[Plan], Decoder],
    num_layers: int,
    batches: Batches,
    context: DecodeContext,
    on_round: Callable[[int], None] = lambda done: None,
) -> LatencyFit:
    """Time decode steps at several depths in turn, and fit a straight line to the seconds.

    `batches` are (input_ids, attention_mask) pairs, each [batch, prompt_len]; the rounds use them
    in turn.
    """
    decoders = {count: make_decoder(_plan(num_layers, count)) for count in counts(num_layers)}
    seconds: dict[int, list[float]] = {count: [] for count in decoders}
    for i in range(WARM_UP + LINE_ROUNDS):
        ids, mask = batches[i % len(batches)]
        order = list(decoders)
        for count in order[i % len(order) :] + order[: i % len(order)]:
            output = decoders[count].generate(ids, mask, context, forced_length=NEW_TOKENS)
            if i >= WARM_UP:
                seconds[count].append(output.decode_seconds / (NEW_TOKENS - 1))
        on_round(i + 1)
    return LatencyFit.of(num_layers, {count: median(spent) for count, spent in seconds.items()})


def solve_depth_for_speedup(
    fit: LatencyFit,
    target_speedup: float,
    measured: Callable[[float], tuple[float, Sequence[float]]],
    on_round: Callable[[int], None] = lambda done: None,
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
    trials: list[DepthMeasurement] = []
    for i in range(rounds):
        had, ratios = measured(depth)
        trials.append(DepthMeasurement(had, median(ratios)))
        offsets += [1 / ratio - fit.share(had) for ratio in ratios]
        interval = median_interval(offsets)
        offset, before, depth = interval.median, depth, fit.depth(target_speedup, interval.median)
        on_round(i + 1)
        known = (interval.high - interval.low) / 2 * target_speedup <= CLOSE
        if (
            len(trials) > 1
            and known
            and abs(fit.share(depth) - fit.share(before)) * target_speedup <= CLOSE
        ):
            break
    return LatencyTargetFit(depth, fit, offset, tuple(trials))


def make_pair_timer(
    model: PreTrainedModel,
    plan_of: Callable[[float], Plan],
    batches: Batches,
    context: DecodeContext,
    config: Config,
) -> Callable[[float], tuple[float, Sequence[float]]]:
    """Return the `measured` function of `solve_depth_for_speedup`; it times the full model and the
    plan `plan_of(depth)`.

    The plan runs with patches that change nothing, because patches cannot be computed before the
    layers are known.
    """
    known: dict[tuple[tuple[int, ...], ...], Decoder] = {}

    def decoder(plan: Plan) -> Decoder:
        sets = tuple(stage.kept_layers for stage in plan.stages)
        if sets not in known:
            adapter = timing_adapter(model, sets, config.correction.patches(config.model))
            known[sets] = Decoder(model, plan, adapter=adapter, engine=config.engine)
        return (
            known[sets].with_stage_switch(plan.later_stages[0].first_step)
            if plan.later_stages
            else known[sets]
        )

    def measured(depth: float) -> tuple[float, Sequence[float]]:
        plan = plan_of(depth)
        full = decoder(_plan(plan.num_layers, plan.num_layers))
        few = config.speed.replace(pairs=MEET_PAIRS, warmup=1)
        pairs = measure_pairs(full, decoder(plan), batches, context, few)
        return plan.mean_kept(config.speed.new_tokens - 1), pairs.ratios(
            lambda output: output.decode_seconds
        )

    return measured


def counts(num_layers: int) -> list[int]:
    """Return the numbers of kept layers that `fit_step_latency` times.

    >>> counts(30)
    [30, 20, 10, 2]
    """
    return sorted(
        {num_layers, 2 * num_layers // 3, num_layers // 3, schedule.MIN_KEPT} - {0, 1}, reverse=True
    )


def _plan(num_layers: int, count: int) -> Plan:
    kept = schedule.even(num_layers, count)
    return Plan.from_layers(num_layers, kept)
