import torch
from reference import NUM_LAYERS

from ulskip_cli import views
from ulskip_cli.config import compose
from ulskip_cli.generation import head
from ulskip_cli.generation.decode import Decoder
from ulskip_cli.models.facts import ModelFacts
from ulskip_cli.plan import make_plan


def decoder_of(model):
    return Decoder(model, make_plan(compose([]), ModelFacts(NUM_LAYERS, None, None)))


def test_final_norm_and_head_are_found_in_every_architecture(model):
    view = decoder_of(model).view
    ids = torch.zeros(2, 1, dtype=torch.long)
    outputs = []

    def step():
        outputs.append(views.forward_with_cache(view, ids, torch.ones_like(ids), views.new_cache(view), last_only=True))

    with torch.inference_mode():
        calls = [call for call in head.calls_after_layers(view, step) if not isinstance(call[0], torch.nn.Dropout)]
        assert [type(module).__name__[-4:] for module, _, _ in calls] in (["Norm", "near"], ["orm1", "near"])
        assert calls[-1][0] is model.get_output_embeddings()
        assert calls[0][1][0].shape == (2, 1, 32)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_it_is_timed_straight_after_whole_steps(llama, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(head, "now", lambda device: next(clock))
    steps = []
    real = views.forward_with_cache
    monkeypatch.setattr(views, "forward_with_cache", lambda *args, **more: steps.append(1) or real(*args, **more))
    assert head.head_seconds(decoder_of(llama), "fast", batch_size=2) == 1
    assert len(steps) == 1 + head.WARM_UP + head.ROUNDS


def test_the_fast_engines_layout_of_weights_counts(llama, monkeypatch):
    packed = []
    monkeypatch.setattr(head, "packed", lambda view: packed.append(view) or view)
    decoder = decoder_of(llama)
    head.head_seconds(decoder, "transformers", batch_size=1)
    assert packed == []
    head.head_seconds(decoder, "fast", batch_size=1)
    assert packed == [decoder.view]
