from reference import NUM_LAYERS

from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.inference import head_timing, shallow_view
from ulskip_cli.inference.decoder import Decoder
from ulskip_cli.strategies.plan import make_plan


def decoder_of(model):
    return Decoder(model, make_plan(compose([]), ModelMetadata(NUM_LAYERS, None, None)))


def test_the_head_is_timed_directly_after_steps(llama, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(head_timing, "now", lambda device: next(clock))
    steps = []
    real = shallow_view.forward_with_cache
    monkeypatch.setattr(shallow_view, "forward_with_cache", lambda *args, **more: steps.append(1) or real(*args, **more))
    assert head_timing.head_seconds(decoder_of(llama), "onednn", batch_size=2) == 1
    assert len(steps) == 1 + head_timing.WARM_UP + head_timing.ROUNDS


def test_the_head_is_timed_on_the_linear_backend_of_decoding(llama, monkeypatch):
    packed = []
    monkeypatch.setattr(head_timing, "packed", lambda view, backend: packed.append((view, backend)) or view)
    decoder = decoder_of(llama)
    for backend in ("torch", "onednn"):
        head_timing.head_seconds(decoder, backend, batch_size=1)
    assert packed == [(decoder.view, "torch"), (decoder.view, "onednn")]
