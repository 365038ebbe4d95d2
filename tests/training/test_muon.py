import torch
from torch import nn

from ulskip_cli.training.muon import MuonWithAdamW


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def stepped(model, optimizer, steps):
    inputs = torch.tensor([0, 3, 5])
    for _ in range(steps):
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def options(lr=0.01):
    return {"lr": lr, "weight_decay": 0.1, "betas": (0.9, 0.98)}


def test_matrices_go_to_muon_and_everything_else_to_adamw():
    model = tiny()
    reference = tiny()
    stepped(model, MuonWithAdamW(model, **options()), 3)
    matrices = [reference[1].weight, reference[3].weight]
    others = [p for p in reference.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=0.01, weight_decay=0.0, betas=(0.9, 0.98))
    inputs = torch.tensor([0, 3, 5])
    for _ in range(3):
        reference(inputs).square().sum().backward()
        for part in (muon, adamw):
            part.step()
            part.zero_grad()
    for ours, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_schedule_reaches_both():
    model = tiny()
    optimizer = MuonWithAdamW(model, **options())
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    after = stepped(model, optimizer, 1)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_state_survives_saving():
    whole, halves = tiny(), tiny()
    expected = stepped(whole, MuonWithAdamW(whole, **options()), 4)
    first = MuonWithAdamW(halves, **options())
    stepped(halves, first, 2)
    second = MuonWithAdamW(halves, **options())
    second.load_state_dict(first.state_dict())
    for one, other in zip(stepped(halves, second, 2), expected, strict=True):
        assert torch.equal(one, other)
