"""Check links, anchors, navigation and row keys of the documentation, and build the site."""

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from ulskip_cli.core import config
from ulskip_cli.core.correction import PATCHES
from ulskip_cli.tasks.metrics import METRICS

ROOT = Path(__file__).parent.parent
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def commands_of(page):
    """Return the commands in the bash blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("ulskip ")]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    texts = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {text.strip().replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    broken = []
    for link in LINK.findall(CODE.sub("", page.read_text("utf-8"))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_in_prose_stays_on_one_line_so_that_it_can_be_copied(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not [code for code in re.findall("`[^`]*`", prose) if "\n" in code]


def test_the_navigation_names_every_page_once():
    navigation = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    # docs/site_hooks.py prints keys.md
    assert sorted(re.findall(r"[\w-]+\.md", navigation)) == sorted([*pages, "keys.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_measured_numbers_in_tables_are_in_the_files_that_their_section_links_to(page):
    number = re.compile(r"\d+(?:\.\d+)?%?")
    for section in re.split(r"^#+ ", page.read_text("utf-8"), flags=re.MULTILINE):
        links = re.findall(r"\]\((\.\./(?:benchmarks/)?results/[^)]+\.md)\)", section)
        linked = "\n".join((page.parent / link).read_text("utf-8") for link in links)
        measured = {*number.findall(linked)}
        rows = re.findall(r"^\|[^|]+\|(.*)\|$", section, re.MULTILINE)[2:] if links else []
        shown = [found for row in rows if "`" not in row for found in number.findall(row)]
        assert [found for found in shown if found not in measured] == []


def test_the_examples_use_known_keys_and_values():
    commands = [command for page in PAGES for command in commands_of(page)]
    for command in commands:
        name, *words = shlex.split(re.sub("<[^>]*>", "X", command), comments=True)[1:]
        keys = [word for word in words if "=" in word and not word.startswith("-")]
        if name in ("sweep", "bench"):  # one value of each; functions are left out
            keys = [re.sub(r"=([^\[{]*?),.*", r"=\1", key) for key in keys if "(" not in key]
        if name in ("run", "sweep", "bench", "plan", "export", "lm-eval"):
            form = words[words.index("--format") + 1] if "--format" in words else "hf"
            read_by = f"export --format {form}" if name == "export" else name
            assert config.compose(keys, command=read_by)
        elif name == "tune":
            assert config.compose_tuning(keys), command
        elif name == "generate":
            assert config.compose_prompts(keys), command
        elif name == "train":
            assert config.compose_training(keys), command
    assert len(commands) > 40


def test_the_committed_reference_pages_are_what_is_printed():
    printed = runpy.run_path(str(ROOT / "benchmarks" / "reference.py"))
    committed = (ROOT / "docs" / "combinations.md").read_text("utf-8")
    assert printed["combinations"]() == committed, "run `make reference`"
    results = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert results.endswith(printed["row_keys"]()), "run `make reference`"


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing(tmp_path, monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    build = ["mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run([sys.executable, "-m", *build], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    loaded = re.compile(r"(?:<(?:script|img|iframe|link)[^>]+(?:src|href)=|url\()[\"']?https?:")
    for file in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        assert not loaded.search(file.read_text("utf-8")), file.name
    assert "kept_layers" in (tmp_path / "api.html").read_text("utf-8")


def test_every_strategy_correction_engine_metric_and_kind_of_patch_is_described():
    text = "".join(page.read_text("utf-8") for page in PAGES if page.name != "CHANGELOG.md")
    groups = ("strategy", "correction", "engine", "decoding")
    # a format of an engine is a preset of its own
    names = [name.partition("_int")[0] for group in groups for name in config.group_choices(group)]
    missing = {name for name in [*names, *METRICS, *PATCHES] if name not in text}
    assert not missing


def test_engines_of_presets_have_entry_points():
    files = (ROOT / "configs/engine").glob("*.yaml")
    presets = [yaml.safe_load(file.read_text("utf-8")) for file in files]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    paths = project["entry-points"]["ulskip.engines"].values()
    installed = {path.replace(":", ".") for path in paths}
    assert {preset["_target_"] for preset in presets} <= installed
