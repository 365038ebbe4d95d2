"""Make the distribution importable with its entry points, as `pip install --editable` would."""

import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

DISTRIBUTION = Path(__file__).parents[1]
SITE = tempfile.TemporaryDirectory()


def pytest_configure(config: pytest.Config) -> None:
    """Write the metadata of the distribution before tests are imported."""
    project = tomllib.loads((DISTRIBUTION / "pyproject.toml").read_text())["project"]
    info = Path(SITE.name) / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = project["entry-points"]["ulskip.engines"]
    lines = ["[ulskip.engines]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    sys.path += [SITE.name, str(DISTRIBUTION)]
    config.add_cleanup(SITE.cleanup)
