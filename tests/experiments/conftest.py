import pytest
import torch

from ulskip_cli.engines.decoder import Decoder


@pytest.fixture
def limit_memory(monkeypatch):
    """Return a function after whose call a batch of more than one sequence runs out of memory."""

    def call():
        generate = Decoder.generate

        def generate_one(self, input_ids, *args, **options):
            if len(input_ids) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return generate(self, input_ids, *args, **options)

        monkeypatch.setattr(Decoder, "generate", generate_one)

    return call
