import pytest
from matplotlib.figure import Figure

from ulskip_cli.core.errors import StorageError
from ulskip_cli.experiments import results
from ulskip_cli.report import drawing


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    assert [file.name for file in drawing.saved(Figure(), tmp_path / "new" / "a")] == ["a.png", "a.svg"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        drawing.saved(Figure(), tmp_path / "b")
    assert [file.name for file in tmp_path.iterdir()] == ["new"]
