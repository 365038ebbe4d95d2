from types import SimpleNamespace
from typing import ClassVar

import pytest
import reference
import torch
from reference import build_model, random_ids, request_for

from ulskip_cli.core.engines import Engine
from ulskip_cli.core.errors import RunError
from ulskip_cli.engines import decoder as decoder_module
from ulskip_cli.engines.base import Prompts, Room
from ulskip_cli.engines.torch.torch_session import TorchSession


class Roomy(Engine):
    """An engine of another library, whose sessions have a limited size."""

    formats: ClassVar = {"q4": (4, 4)}

    def open(self, views, room):
        return RoomySession(views, room)


class RoomySession(TorchSession):
    closed = 0

    def __init__(self, views, room):
        super().__init__(views)
        self.room = room

    def fits(self, room):
        return self.room.holds(room)

    def close(self):
        RoomySession.closed += 1


def decoder_for(weights=None):
    engine = Roomy(name="roomy", weights=weights)
    return reference.decoder_for(build_model("llama"), "ratio=2", engine=engine)


def generate(decoder, batch_size, prompt_len, length=4):
    """Generate with room for 8 new tokens."""
    ids = random_ids(batch_size, prompt_len)
    request = request_for(decoder.views.model, length, fixed_length=True)
    room = Room(batch_size, prompt_len + 8)
    return decoder.generate(Prompts(ids, torch.ones_like(ids)), request, room=room)


def test_only_a_load_takes_time_so_that_timed_pairs_run_once():
    decoder, before = decoder_for(), RoomySession.closed
    outputs = [
        generate(decoder, *shape)
        for shape in ((2, 10), (2, 10), (1, 5), (4, 10), (4, 10), (4, 10, 8))
    ]
    loads = [i for i, output in enumerate(outputs) if output.compile_seconds > 0]
    assert loads == [0, 3] and outputs[1].compile_seconds == 0
    assert RoomySession.closed == before + 1
    assert {(output.engine, output.linear_backend) for output in outputs} == {("roomy", "roomy")}


@pytest.mark.parametrize(("weights", "size"), [(None, 4.0), ("q4", 0.5)])
def test_copies_that_do_not_fit_into_memory_are_refused_before_they_are_made(
    weights, size, monkeypatch
):
    decoder = decoder_for(weights)
    models = (decoder.views.model, decoder.views.stages[0].view)
    weights = [parameter.numel() for model in models for parameter in model.parameters()]
    needed = int(size * sum(weights))
    for spare in (-1, 1):
        free = SimpleNamespace(available=needed + spare)
        monkeypatch.setattr(decoder_module.psutil, "virtual_memory", lambda free=free: free)
        if spare > 0:
            assert generate(decoder, 1, 4).token_ids
            continue
        with pytest.raises(RunError, match="out of memory: engine=roomy"):
            generate(decoder, 1, 4)
