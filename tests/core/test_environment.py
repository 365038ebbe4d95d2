import socket
from unittest.mock import Mock

import pytest
from huggingface_hub import constants

from ulskip_cli.core import environment


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
