"""The files around the package agree with it: CITATION.cff, Dockerfile and the CI workflow."""

import re
from pathlib import Path

import yaml

from ulskip_cli.core.environment import __version__

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["title"], citation["version"]) == ("ulskip", __version__)


def test_the_image_copies_files_that_exist_and_are_not_ignored():
    sources = {
        name
        for line in re.findall(r"^COPY (.+)", DOCKERFILE, re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert {"ulskip_cli", "configs", "requirements.lock"} <= sources
    assert [name for name in sources if not (ROOT / name).exists()] == []
    ignored, *exceptions = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored == "*"
    assert {f"!{name}" for name in sources} <= set(exceptions)
