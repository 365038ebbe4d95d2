"""Measure the time of the final norm and the output head in a decode step."""

from statistics import median

import torch

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.decoder import Decoder
from ulskip_cli.inference.layerwise import calls_after_layers
from ulskip_cli.inference.packed_linear import packed
from ulskip_cli.inference.timing import now

ROUNDS, WARM_UP = 11, 2


def head_seconds(decoder: Decoder, linear_backend: str, batch_size: int) -> float | None:
    """Return the median seconds of final norm and output head in a decode step; None if another library than torch decodes."""
    if decoder.library_engine:
        return None
    device = decoder.device
    model = packed(decoder.view, linear_backend)
    ids = torch.zeros(batch_size, 1, dtype=torch.long, device=device)

    def step() -> None:
        shallow_view.forward_with_cache(model, ids, torch.ones_like(ids), shallow_view.new_cache(model), last_only=True)

    spent = []
    with torch.inference_mode():
        calls = calls_after_layers(model, step)
        for _ in range(WARM_UP + ROUNDS):
            step()  # fills the processor caches as decoding does
            began = now(device)
            for module, args, options in calls:
                module(*args, **options)
            spent.append(now(device) - began)
    return median(spent[WARM_UP:])
