import socket
from unittest.mock import Mock

import pytest
from huggingface_hub import constants

from ulskip_cli.core import hub


def test_an_unknown_host_is_known_at_once(monkeypatch):
    def fail(*args):
        raise socket.gaierror(-2, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(hub, "getproxies", dict)
    with pytest.raises(OSError, match="unknown"):
        hub.check_reachable()


def test_a_proxy_is_left_to_decide(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy"})
    hub.check_reachable()


def test_a_failed_look_up_counts_for_one_block_only(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=socket.gaierror(-3, "temporary failure")))
    with hub.offline_if_unreachable():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [])
    with hub.offline_if_unreachable():
        assert not constants.is_offline_mode()


def test_an_offline_mode_of_the_users_stays(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "check_reachable", lambda: None)
    with hub.offline_if_unreachable():
        assert constants.is_offline_mode()
    assert constants.is_offline_mode()
