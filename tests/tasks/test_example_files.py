import gzip
import json
import socket
from unittest.mock import Mock

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.example_files import (
    examples_from_rows,
    load_dataset_rows,
    read_objects,
    read_text,
)


def test_an_answer_that_is_a_number_is_read_as_its_text():
    (example,) = examples_from_rows([{"q": "a", "a": 5}], "q", "a", "x.jsonl")
    assert example.reference == "5"


def test_a_prompt_that_is_a_number_is_refused():
    with pytest.raises(UsageError, match="row 1: expected a text under q, got 3"):
        examples_from_rows([{"q": 3, "a": "b"}], "q", "a", "x.jsonl")


def test_plain_and_gzipped_text_are_equal(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffschön\r\nund gut\n".encode())
    (tmp_path / "a.gz").write_bytes(gzip.compress("schön\nund gut\n".encode()))
    assert read_text(tmp_path / "a.txt") == read_text(tmp_path / "a.gz") == "schön\nund gut\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.txt", "schön".encode("latin-1")),
        ("broken.gz", b"no gzip"),
        ("short.gz", gzip.compress(b"x" * 99, mtime=0)[:-9]),
    ],
)
def test_a_file_that_is_not_utf8_text_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name} to be text in UTF-8"):
        read_text(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("nonsense\n", "line 1"),
        ("{}\n[1]\n", "line 2"),
        ('{"prompt": "\\ud800"}\n', "line 1.*Unicode"),
    ],
)
def test_bad_objects_are_named_with_their_line(tmp_path, text, named):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(UsageError, match=rf"bad\.jsonl.*{named}"):
        read_objects(tmp_path / "bad.jsonl")


def test_without_network_a_hub_dataset_is_an_error_that_names_it(monkeypatch):
    fails = Mock(side_effect=socket.gaierror(-2, "Name or service not known"))
    monkeypatch.setattr(socket, "getaddrinfo", fails)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    for is_offline, why in ((False, "Name or service"), (True, "Offline")):
        for module in ("huggingface_hub.constants", "datasets.config"):
            monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", is_offline)
        with pytest.raises(UsageError, match=rf"some/data.*{why}.*HF_HUB_OFFLINE=1"):
            load_dataset_rows("some/data", None, "test")


@pytest.fixture
def subsets(tmp_path):
    """A folder that declares its subsets, whose rows name them."""

    def write(*names):
        configs = ""
        for name in names:
            (tmp_path / f"{name}.jsonl").write_text(json.dumps({"subset": name}) + "\n")
            configs += (
                f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}.jsonl\n"
            )
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        return str(tmp_path)

    return write


def test_the_only_subset_or_a_default_is_taken(subsets, tmp_path):
    assert load_dataset_rows(subsets("a"), None, "test") == [{"subset": "a"}]
    with pytest.raises(UsageError, match=r"^[^\n]*validation[^\n]*$"):
        load_dataset_rows(str(tmp_path), None, "validation")
    folder = subsets("cs-en", "de-en")
    assert load_dataset_rows(folder, None, "test", ("de-en", "en-de")) == [{"subset": "de-en"}]
    assert load_dataset_rows(folder, "cs-en", "test", ("de-en",)) == [{"subset": "cs-en"}]


def test_several_subsets_without_a_default_are_listed(subsets):
    with pytest.raises(UsageError, match=r"task\.subset.*first, second"):
        load_dataset_rows(subsets("first", "second"), None, "test")
