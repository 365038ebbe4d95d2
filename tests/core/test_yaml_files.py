import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.yaml_files import read_mapping

HEAD = b"_target_: ulskip_cli.strategies.full.Full\nname: mine\n"
BROKEN = {
    "binary": HEAD + b"description: \xff\xfe\x00",
    "latin-1": HEAD + b"description: caf\xe9",
    "malformed": HEAD + b"layers: [",
    "duplicate key": HEAD + b"name: other",
    "nested duplicate key": HEAD + b"options: {a: 1, a: 2}",
    "deep": b"a: " + b"[" * 100_000,
    "empty": b"",
    "number": b"5",
    "list": b"- a",
    "whole number as key": HEAD + b"5: 5",
    "list as key": HEAD + b"? [x]\n: 5",
    "alias of itself": HEAD + b"x: &a [*a]",
    "python object": HEAD + b"x: !!python/object/apply:os.getcwd []",
    "no text as name": b"_target_: ulskip_cli.strategies.full.Full\nname: null\n",
    "no list as defaults": b"defaults: 5\n" + HEAD,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_of_the_config_folder_is_named(content, tmp_path):
    file = tmp_path / "strategy" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(UsageError, match=str(file)):
        compose(["strategy=mine"], tmp_path)


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.yaml"):
        with pytest.raises(UsageError, match=str(path)):
            read_mapping(path)
