import pytest
import torch

from ulskip_cli import __version__
from ulskip_cli.core import environment


def test_code_and_machine_are_told():
    code, machine = environment.code(), environment.machine()
    assert code["ulskip"] == __version__
    assert code["packages"]["torch"]
    assert set(code) >= {"git_commit", "git_dirty"}
    assert machine["threads"] >= 1
    assert machine["instruction_set"]


def test_a_process_has_been_running():
    assert 0 < environment.process_seconds() <= environment.process_seconds()


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine with one GPU; as in torch, asking for another one is an error."""

    def name(device):
        if torch.device(device).index:
            raise AssertionError("Invalid device id")
        return "H100"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)


@pytest.mark.parametrize(("device", "here"), [("cuda", True), ("cuda:0", True), ("cuda:3", False)])
def test_a_row_of_a_gpu_that_is_not_here_is_of_another_machine(one_gpu, device, here):
    row = {"device": device, "environment": {**environment.machine(), "accelerator": "H100"}}
    assert environment.is_like_here(row) is here


def test_a_row_of_the_processor_is_of_this_machine_whatever_gpus_it_has(one_gpu):
    assert environment.is_like_here({"device": "cpu", "environment": environment.machine("cpu")})
