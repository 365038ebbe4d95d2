import pytest
import torch
from torch.nn import functional

from ulskip_cli.inference import teacher_forcing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part_size", [1, 100, 2**22])
def test_losses_and_divergences_do_not_depend_on_the_parts(monkeypatch, dtype, part_size):
    monkeypatch.setattr(teacher_forcing, "PART_SIZE", part_size)
    target, logits = torch.randn(2, 3, 7, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.arange(21).view(3, 7)
    losses = teacher_forcing.response_losses(logits, ids)
    expected = functional.cross_entropy(logits.double().movedim(-1, 1), ids, reduction="none")
    assert torch.allclose(losses.double(), expected, rtol=1e-5)
    p, q = target.double().softmax(-1), logits.double().softmax(-1)
    found = teacher_forcing.divergence(target.flatten(0, 1), logits.flatten(0, 1))
    assert float(found) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
