import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from reference import decoder_for, random_ids

from ulskip_cli.core.answer import Request
from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import DecodingConfig, SpeedConfig
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines import loop
from ulskip_cli.engines.base import BatchOutput, Prompts, Watch, take_turns
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.torch.torch_session import TorchSession
from ulskip_cli.experiments import paired_timing
from ulskip_cli.experiments.evaluate import answer_request
from ulskip_cli.experiments.intervals import ENOUGH, UNITS
from ulskip_cli.experiments.record import Timing, Unit

PROMPTS = Prompts(random_ids(2, 5), torch.ones(2, 5, dtype=torch.long))
ALONE = Prompts(PROMPTS.input_ids[:1], PROMPTS.attention_mask[:1])


def forced(length):
    """Exactly this number of greedy tokens."""
    return Request(DecodingConfig(name="greedy"), length, fixed_length=True)


def pairs_of(full, strategy, request, count, prompts=PROMPTS):
    """Pairs of two sides, timed alone as one unit."""
    pair = paired_timing.Pair(full, strategy, [prompts], request)
    timed = paired_timing.measure_pairs(pair, range(count))
    return replace(timed, units=(Unit(pairs=count),))


def timed_units(full, strategy, *counts):
    """Pairs that were timed in units of `counts` pairs."""
    return paired_timing.TimedPairs(full, strategy, tuple(Unit(pairs=count) for count in counts))


def output(first, decode):
    return BatchOutput([[1, 2]], [True], 3, first / 2, first, decode, 8, 4)


def full_and_half(model):
    """Decoders of every layer and of half of them."""
    return [decoder_for(model, f"strategy={name}") for name in ("full", "unified")]


def outputs(*seconds):
    return tuple(output(1, decode) for decode in seconds)


def test_ratios_are_taken_pair_by_pair():
    timing = timed_units(outputs(4, 9, 6, 5, 8, 7), outputs(2, 3, 3, 5, 2, 1), 6).timing()
    assert timing.measured_speedup == pytest.approx(2.5)
    assert timing.end_to_end_speedup == pytest.approx(2.125)
    assert timing.measured_speedup_low == timing.measured_speedup_high  # a single unit
    assert timing.pairs.full.decode_seconds == (4, 9, 6, 5, 8, 7)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass with every unit, and the full model's seconds per step in each unit."""
    state = SimpleNamespace(now=0.0, unit=10.0, full=itertools.repeat(2.0), rounds=[])
    monkeypatch.setattr(paired_timing.time, "monotonic", lambda: state.now)

    def measure(pair, rounds, past=None):
        state.now += state.unit
        state.rounds += rounds
        count = len(rounds)
        return paired_timing.TimedPairs(outputs(*[next(state.full)] * count), outputs(*[1] * count))

    monkeypatch.setattr(paired_timing, "measure_pairs", measure)
    return state


@pytest.fixture
def units_of(llama, clock, monkeypatch):
    def measured(**speed):
        pair = paired_timing.Pair(*full_and_half(llama), [PROMPTS], forced(64))
        monkeypatch.setattr(paired_timing, "bandwidth_meter", lambda device: lambda: 1e9)
        return paired_timing.measure_units(pair, SpeedConfig(**speed), "", ProgressCallback())

    return measured


def test_units_end_when_the_interval_is_narrow_enough(units_of):
    timed = units_of(seconds=1000)
    assert len(timed.units) == ENOUGH
    assert timed.timing().measured_speedup == pytest.approx(2)
    assert {unit.bytes_per_second for unit in timed.units} == {1e9}


def test_units_end_when_the_time_is_spent(units_of, clock):
    clock.full = itertools.cycle([1.0, 2.0, 3.0])
    timed = units_of(seconds=75)
    assert len(timed.units) == 7  # an eighth would end after 80 seconds
    assert len(units_of(seconds=0).units) == UNITS


def test_a_short_step_gets_many_pairs(units_of):
    assert units_of(seconds=0).units[0].pairs == 1
    pair_seconds = 3 + 2  # with its prompts
    assert units_of(seconds=3 * pair_seconds / paired_timing.UNIT_SHARE).units[0].pairs == 3


def test_sides_that_stop_at_eos_are_compared_by_their_seconds_a_token():
    def side(*runs):
        return [replace(output(1, decode), token_ids=[[1] * tokens]) for decode, tokens in runs]

    full, strategy = side((4, 9), (5, 6), (3, 8)), side((2, 3), (1, 5), (2, 7))
    timing = timed_units(full, strategy, 3).timing()
    assert timing.measured_speedup == pytest.approx((3 / 7) / (2 / 6))
    assert timing.end_to_end_speedup == pytest.approx((4 / 8) / (3 / 7))
    assert timing.pairs.full.decoded_tokens == (8, 5, 7)


def test_a_schedule_that_was_timed_alone_has_no_ratio():
    paired, alone = (timed_units(full, outputs(2), 1).timing() for full in (outputs(4), []))
    assert (alone.pairs.full, alone.pairs.strategy) == (None, paired.pairs.strategy)
    assert {alone.value(key) for key in Timing.model_fields if "speedup" in key} == {None}
    assert (alone.prefill_seconds, alone.time_per_output_token_seconds) == (0.5, 2)


def test_both_sides_generate_the_same_number_of_tokens(llama):
    full, half = full_and_half(llama)
    pairs = pairs_of(full, half, forced(4), 3)
    assert [[len(ids) for ids in o.token_ids] for o in pairs.full + pairs.strategy] == [[4, 4]] * 6
    kept = [[output.kept_kv_bytes for output in side] for side in (pairs.full, pairs.strategy)]
    assert kept[0] == [2 * count for count in kept[1]]


def test_with_drafts_full_goes_without_them_and_both_end_where_they_end(llama):
    full, other = (decoder_for(llama, "strategy=full") for _ in range(2))
    plain = pairs_of(full, full, forced(6), 1).full[0]
    llama.generation_config.eos_token_id = plain.token_ids[0][3]
    answer = answer_request(compose(["decoding=self_speculative"]), None, llama)
    drafting = paired_timing.timed_request(answer, 6, other.views)
    pairs = pairs_of(full, other, drafting, 2, prompts=ALONE)
    assert [side[0].drafts is None for side in (pairs.full, pairs.strategy)] == [True, False]
    answers = [[output.token_ids for output in side] for side in (pairs.full, pairs.strategy)]
    assert answers[0] == answers[1]
    assert len(pairs.full[0].token_ids[0]) <= 4
    assert max(len(row) for row in pairs.full[0].token_ids) <= 6


def pairs_that_ran(llama, monkeypatch, full, strategy):
    """Pairs whose sides say that they were run by other means than they were."""
    every, half = full_and_half(llama)
    run = Decoder.run

    def changed(self, *args, **options):
        output = yield from run(self, *args, **options)
        return replace(output, **(full if self is every else strategy))

    monkeypatch.setattr(Decoder, "run", changed)
    return pairs_of(every, half, forced(2), 1)


@pytest.mark.parametrize(
    ("full", "strategy"),
    [
        ({"linear_backend": "torch"}, {"linear_backend": "panels"}),
        ({"engine": "transformers"}, {"engine": "torch"}),
    ],
)
def test_sides_that_ran_by_unlike_means_give_no_ratio(llama, monkeypatch, full, strategy):
    key = next(iter(full))
    with pytest.raises(RunError, match=f"{key}.*{full[key]}.*{strategy[key]}"):
        pairs_that_ran(llama, monkeypatch, full, strategy)


def test_the_first_run_after_compiling_is_not_timed(llama, monkeypatch):
    full, half = full_and_half(llama)
    run, calls = Decoder.run, []

    def compiled_first(self, *args, **options):
        first = self not in calls
        calls.append(self)
        output = yield from run(self, *args, **options)
        seconds = 9.0 if first else 1.0
        return replace(output, compile_seconds=5.0 * first, decode_seconds=seconds)

    monkeypatch.setattr(Decoder, "run", compiled_first)
    pairs = pairs_of(full, half, forced(2), 1)
    assert [output.decode_seconds for output in pairs.full + pairs.strategy] == [1.0, 1.0]
    assert pairs.compile_seconds == 5.0


TOKENS = 8
OTHERS = ["strategy=unified", "strategy=skip_decode", "strategy=early_exit strategy.threshold=0.02"]
OTHERS.append("strategy=unified decoding=self_speculative batch_size=1")


@pytest.mark.parametrize("overrides", [*map(str.split, OTHERS)], ids=OTHERS)
def test_sides_that_take_turns_give_the_tokens_that_they_give_alone(llama, monkeypatch, overrides):
    monkeypatch.setattr(paired_timing, "TURN_SECONDS", 0)  # one step
    config = compose(overrides)
    full, other = decoder_for(llama), decoder_for(llama, *overrides)
    answer = answer_request(config, None, llama)
    request = paired_timing.timed_request(answer, TOKENS, other.views)
    prompts = ALONE if config.decoding.draft_tokens else PROMPTS
    assert request.fixed_length == (prompts is PROMPTS and not other.views.exits)
    pairs = pairs_of(full, other, request, 2, prompts=prompts)
    alone = other.generate(prompts, request)
    assert [output.token_ids for output in pairs.strategy] == [alone.token_ids] * 2


def test_the_time_of_a_pause_does_not_count(llama, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop, "synchronized_time", lambda device: clock[0])
    generation, pauses = decoder_for(llama).run(PROMPTS, forced(9), Watch(pause_every=3)), 0
    with pytest.raises(StopIteration) as stop:
        while True:
            next(generation)
            clock[0] += 100
            pauses += 1
    assert (pauses, stop.value.value.decode_seconds) == (2, 0)


def test_a_side_that_fails_frees_the_batch_of_the_other(llama, monkeypatch):
    finished = []
    monkeypatch.setattr(TorchSession, "finish", lambda session: finished.append(session))

    def fail():
        yield torch.zeros(1, 1)
        raise RunError("out of memory")

    generation = decoder_for(llama).run(PROMPTS, forced(9), Watch(pause_every=1))
    with pytest.raises(RunError, match="out of memory"):
        take_turns([generation, fail()])
    assert len(finished) == 1
