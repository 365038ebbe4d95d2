from reference import NUM_LAYERS

from ulskip_cli import views
from ulskip_cli.config import compose
from ulskip_cli.generation import head
from ulskip_cli.generation.decode import Decoder
from ulskip_cli.models.facts import ModelFacts
from ulskip_cli.plan import make_plan


def decoder_of(model):
    return Decoder(model, make_plan(compose([]), ModelFacts(NUM_LAYERS, None, None)))


def test_it_is_timed_straight_after_whole_steps(llama, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(head, "now", lambda device: next(clock))
    steps = []
    real = views.forward_with_cache
    monkeypatch.setattr(views, "forward_with_cache", lambda *args, **more: steps.append(1) or real(*args, **more))
    assert head.head_seconds(decoder_of(llama), "onednn", batch_size=2) == 1
    assert len(steps) == 1 + head.WARM_UP + head.ROUNDS


def test_the_layout_of_weights_that_decoded_counts(llama, monkeypatch):
    packed = []
    monkeypatch.setattr(head, "packed", lambda view, backend: packed.append((view, backend)) or view)
    decoder = decoder_of(llama)
    for backend in ("torch", "onednn"):
        head.head_seconds(decoder, backend, batch_size=1)
    assert packed == [(decoder.view, "torch"), (decoder.view, "onednn")]
