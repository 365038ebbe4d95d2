import socket
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import constants

from ulskip_cli import __version__
from ulskip_cli.core import environment


def test_code_and_machine_are_told():
    code, machine = environment.code(), environment.machine()
    assert code["ulskip"] == __version__
    assert code["packages"]["torch"]
    assert set(code) >= {"git_commit", "git_dirty"}
    assert machine["threads"] >= 1
    assert machine["instruction_set"]


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
    assert (
        environment.is_like_here({**environment.machine(), "accelerator": "H100"}, device) is here
    )


def test_a_row_of_the_processor_is_of_this_machine_whatever_gpus_it_has(one_gpu):
    assert environment.is_like_here(environment.machine("cpu"), "cpu")


def test_an_unknown_host_is_known_at_once(monkeypatch):
    def fail(*args):
        raise socket.gaierror(-2, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(OSError, match="unknown"):
        environment.check_hub_reachable()


def test_a_proxy_is_left_to_decide(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy"})
    environment.check_hub_reachable()


def test_a_failed_look_up_counts_for_one_block_only(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(
        socket, "getaddrinfo", Mock(side_effect=socket.gaierror(-3, "temporary failure"))
    )
    with environment.offline_if_hub_unreachable():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [])
    with environment.offline_if_hub_unreachable():
        assert not constants.is_offline_mode()


def test_an_offline_mode_of_the_users_stays(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(environment, "check_hub_reachable", lambda: None)
    with environment.offline_if_hub_unreachable():
        assert constants.is_offline_mode()
    assert constants.is_offline_mode()
