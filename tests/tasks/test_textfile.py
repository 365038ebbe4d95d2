import gzip

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.textfile import read_lines, read_objects, read_text


def test_plain_and_gzipped_text_are_the_same(tmp_path):
    (tmp_path / "a.txt").write_bytes("schön\r\nund gut\n".encode())
    (tmp_path / "a.gz").write_bytes(gzip.compress("schön\nund gut\n".encode()))
    assert read_text(tmp_path / "a.txt") == read_text(tmp_path / "a.gz") == "schön\nund gut\n"


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert read_objects(tmp_path / "a.jsonl") == [{"a": 1}]


@pytest.mark.parametrize(
    ("name", "content"),
    [("latin.txt", "schön".encode("latin-1")), ("broken.gz", b"no gzip"), ("cut.gz", gzip.compress(b"x" * 99)[:-9])],
)
def test_what_is_no_text_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"cannot read .*{name} as UTF-8"):
        read_text(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="no file at"):
        read_text(tmp_path / "none.txt")


def test_lines_keep_unusual_separators(tmp_path):
    (tmp_path / "a").write_bytes("eins\nzwei\u2028drei\n".encode())
    assert read_lines(tmp_path / "a") == ["eins", "zwei\u2028drei"]


def test_objects_come_one_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_objects(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("nonsense\n", "line 1: expected a JSON object"), ("{}\n[1]\n", "line 2")]
)
def test_bad_objects_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_objects(tmp_path / "bad.jsonl")
