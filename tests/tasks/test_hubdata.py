import json
import socket

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks import hubdata


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"translation": {"de": f"der {i}", "en": f"the {i}"}}) for i in range(3)]
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def test_a_local_folder_is_read_as_the_hub_would_be(folder):
    rows = hubdata.rows(str(folder), None, "test")
    assert rows[2]["translation"] == {"de": "der 2", "en": "the 2"}


def test_a_split_that_is_not_there_is_one_line(folder):
    with pytest.raises(UsageError, match=r"cannot read dataset .*validation") as caught:
        hubdata.rows(str(folder), None, "validation")
    assert "\n" not in str(caught.value)


def test_without_network_it_says_what_else_there_is(monkeypatch):
    def fail(*args):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("ulskip_cli.core.hub.getproxies", dict)
    with pytest.raises(UsageError, match=r"cannot read dataset 'some/data' \(.*Name or service.*give a folder or files"):
        hubdata.rows("some/data", None, "test")


def test_subsets_are_chosen_or_asked_for():
    assert hubdata._subset(["default"], (), "x") == "default"
    assert hubdata._subset(["cs-en", "de-en"], ("de-en", "en-de"), "x") == "de-en"
    assert hubdata._subset([], (), "x") is None
    with pytest.raises(UsageError, match=r"task\.subset: 1\.0\.0, 3\.0\.0"):
        hubdata._subset(["1.0.0", "3.0.0"], (), "x")


def test_names():
    assert hubdata.is_hub_name("wmt/wmt14")
    assert not hubdata.is_hub_name("wmt14")
