import gzip

import pytest

from ulskip_cli.errors import UsageError
from ulskip_cli.tasks.textfile import read_text


def test_plain_and_gzipped_text_are_the_same(tmp_path):
    (tmp_path / "a.txt").write_bytes("schön\r\nund gut\n".encode())
    (tmp_path / "a.gz").write_bytes(gzip.compress("schön\nund gut\n".encode()))
    assert read_text(tmp_path / "a.txt") == read_text(tmp_path / "a.gz") == "schön\nund gut\n"


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
