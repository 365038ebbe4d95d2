"""Steps in the kernels give what forward passes of the views give."""

import pytest
import torch
from reference import NATIVE_ARCHITECTURES, NUM_LAYERS, batch, build_model, random_adapter

from ulskip_cli.engines.torch.decode_steps import EagerSteps, NativeSteps
from ulskip_cli.engines.torch.native_model import NativeBackend, backend_for
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.shallow_view import shallow_view
from ulskip_cli.inference.teacher_forcing import encode_prompt

pytestmark = pytest.mark.usefixtures("needs_kernels")
KEPT, LATER = (0, 2, 3, 5), (0, 3, 5)
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.bfloat16: {"rtol": 0.1, "atol": 0.5}}


@pytest.fixture(params=NATIVE_ARCHITECTURES)
def native(request):
    """A model that the kernels have a step for."""
    model = build_model(request.param)
    assert isinstance(backend_for(model), NativeBackend)
    return model


def native_view(model, view):
    """Return what runs the steps of a view in the kernels; the model may have been cast."""
    native = backend_for(model)
    assert isinstance(native, NativeBackend)
    return native.step_model(view)


def both(model, view, length=20):
    """Return eager and native steps of a view after the same prompts, some of them padded."""
    ids, mask = batch(padded=True)
    made = []
    for steps, step_model in ((EagerSteps, view), (NativeSteps, native_view(model, view))):
        cache = encode_prompt(model, ids, mask).cache
        kv_cache.prune_cache(cache, KEPT)
        made.append(steps(step_model, cache, mask, length))
    return made


def tokens(count):
    return torch.arange(2, 2 + 5 * count).view(5, count)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@torch.inference_mode()
def test_steps_of_any_length(native, dtype):
    model = native.to(dtype)
    eager, fast = both(model, shallow_view(model, KEPT))
    for count in (1, 3, 1, 8):  # also behind the sliding window of 4
        wanted, got = (steps.logits(tokens(count)).float() for steps in (eager, fast))
        torch.testing.assert_close(got, wanted, **CLOSE[dtype])


@pytest.mark.parametrize("kind", ["full", "folded", "lora"])
@torch.inference_mode()
def test_corrected_steps(native, kind):
    adapter, _ = random_adapter(native, KEPT, kind)
    eager, fast = both(native, adapter.view(native, KEPT))
    for count in (1, 4):
        wanted, got = (steps.logits(tokens(count)) for steps in (eager, fast))
        torch.testing.assert_close(got, wanted, **CLOSE[torch.float32])


@torch.inference_mode()
def test_stages_removed_tokens_and_ended_sequences(native):
    later = shallow_view(native, LATER)
    eager, fast = both(native, shallow_view(native, KEPT))
    alive = torch.tensor([3, 1])
    got = []
    for steps, model in ((eager, later), (fast, native_view(native, later))):
        steps.logits(tokens(4))
        steps.remove(3)
        steps.switch(model, LATER)
        first = steps.logits(tokens(2))
        steps.keep(alive)
        got.append([first[alive], steps.logits(tokens(1)[alive])])
    for wanted, fast_logits in zip(*got, strict=True):
        torch.testing.assert_close(fast_logits, wanted, **CLOSE[torch.float32])


@torch.inference_mode()
def test_steps_beside_others_read_and_write_the_same_cache(native):
    later = shallow_view(native, LATER)
    got = []
    for steps in both(native, shallow_view(native, KEPT)):
        is_native = isinstance(steps, NativeSteps)
        beside = steps.beside(native_view(native, later) if is_native else later, LATER)
        drafted = beside.logits(tokens(2))
        steps.remove(2)
        got.append([drafted, steps.logits(tokens(3))])
    for wanted, fast_logits in zip(*got, strict=True):
        torch.testing.assert_close(fast_logits, wanted, **CLOSE[torch.float32])


@torch.inference_mode()
def test_choices_are_the_most_likely_tokens_that_are_not_banned(native):
    view, banned = shallow_view(native, tuple(range(NUM_LAYERS))[:4]), torch.tensor([7, 3])
    plain, chosen = (both(native, view)[1] for _ in range(2))
    for count in (1, 3):
        logits = plain.logits(tokens(count))
        logits[..., banned] = -torch.inf
        assert torch.equal(chosen.choose(tokens(count), banned), logits.argmax(-1))
