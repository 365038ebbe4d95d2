import socket

import pytest

from ulskip_cli import hub


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
