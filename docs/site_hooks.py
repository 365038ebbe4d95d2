"""Hooks of MkDocs: add the page of all keys, and the pages of results/ and benchmarks/results/ that
pages link to.
"""

import re
import runpy
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./((?:results|benchmarks)/[^)#]+)")
INSIDE = re.compile(r"\]\(([^):#]+)")


def on_files(files, config):
    """Add the page of all keys, every file that a page links to, and the files that these pages
    link to in turn.
    """
    reference = runpy.run_path(str(ROOT / "benchmarks" / "reference.py"))
    files.append(File.generated(config, "keys.md", content=reference["keys"]()))
    waiting = [
        link
        for page in files.documentation_pages()
        for link in OUTSIDE.findall(page.content_string)
    ]
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(path):
            continue
        files.append(
            File.generated(config, path, abs_src_path=str(ROOT / path), inclusion=_inclusion())
        )
        if path.endswith(".md"):
            folder = (ROOT / path).parent
            links = INSIDE.findall((ROOT / path).read_text("utf-8"))
            waiting += [str((folder / link).resolve().relative_to(ROOT)) for link in links]
    return files


def on_page_markdown(markdown, page, config, files):
    """Make links to results relative to the root of the site, where `on_files` has put them."""
    return OUTSIDE.sub(r"](\1", markdown)


def _inclusion():
    from mkdocs.structure.files import InclusionLevel

    return InclusionLevel.NOT_IN_NAV
