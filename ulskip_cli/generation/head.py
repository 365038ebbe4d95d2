"""The time of what every decode step ends with, whatever it keeps: final norm and output head."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ulskip_cli import views
from ulskip_cli.generation.decode import Decoder
from ulskip_cli.generation.packed import packed
from ulskip_cli.timing import now

ROUNDS, WARM_UP = 11, 2

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def head_seconds(decoder: Decoder, engine: str, batch_size: int) -> float:
    """Median seconds of final norm and output head alone, on hidden states [batch, 1, hidden], not compiled.

    Each time straight after a whole step, so that caches hold what they hold while decoding.

    Args:
        decoder: a model under a schedule.
        engine: in whose layout the weights are.
        batch_size: sequences at once.
    """
    device = decoder.device
    model = packed(decoder.view) if engine == "fast" else decoder.view
    ids = torch.zeros(batch_size, 1, dtype=torch.long, device=device)

    def step() -> None:
        views.forward_with_cache(model, ids, torch.ones_like(ids), views.new_cache(model), last_only=True)

    spent = []
    with torch.inference_mode():
        calls = calls_after_layers(model, step)
        for _ in range(WARM_UP + ROUNDS):
            step()
            began = now(device)
            for module, args, options in calls:
                module(*args, **options)
            spent.append(now(device) - began)
    return median(spent[WARM_UP:])


def calls_after_layers(view: PreTrainedModel, step: Callable[[], None]) -> list[Call]:
    """The modules that a step runs after its last decoder layer, in order, with what each was given."""
    calls: list[Call] = []
    layers = views.decoder_layers(view)
    inside = {id(module) for layer in layers for module in layer.modules()}
    outside = [module for module in view.modules() if id(module) not in inside and not any(module.children())]

    def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls.append((module, args, options))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in outside]
    hooks.append(layers[-1].register_forward_hook(lambda *_: calls.clear()))
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return calls
