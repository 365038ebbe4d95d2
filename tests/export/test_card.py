import pytest

from ulskip_cli.export.checkpoint import source_license


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\ntags:\n- a\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("# No metadata", None),
        ("---\nlicense: caf\xe9\n---\n", None),
        (None, None),
    ],
)
def test_the_license_comes_from_the_sources_card(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "README.md").write_text(text, "latin-1")
    assert source_license(tmp_path) == expected
