import pytest
import torch

from ulskip_cli.engines.decoder import Decoder


@pytest.fixture
def limit_memory(monkeypatch):
    """Return a function after whose call a batch of more than one sequence runs out of memory."""

    def call():
        run = Decoder.run

        def run_one(self, prompts, *args, **options):
            if len(prompts.input_ids) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(self, prompts, *args, **options)

        monkeypatch.setattr(Decoder, "run", run_one)

    return call
