import socket
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import constants

from ulskip_cli.core import environment


@pytest.mark.parametrize(("device", "here"), [("cuda", True), ("cuda:3", False), ("cpu", False)])
def test_a_row_belongs_to_this_machine_if_its_accelerator_is_here(monkeypatch, device, here):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    on_gpu = {**environment.machine("cpu"), "accelerator": "H100"}
    assert environment.is_like_here(on_gpu, device) is here
    assert environment.is_like_here(environment.machine("cpu"), "cpu")


def test_an_unreachable_hub_is_offline_for_one_block(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    fails = Mock(side_effect=socket.gaierror(-3, "temporary failure"))
    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(OSError, match="temporary"):
        environment.check_hub_reachable()
    with environment.offline_if_hub_unreachable():
        assert constants.is_offline_mode()
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy"})
    with environment.offline_if_hub_unreachable():
        assert not constants.is_offline_mode()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with environment.offline_if_hub_unreachable():
        assert constants.is_offline_mode()
    assert constants.is_offline_mode()
