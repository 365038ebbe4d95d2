"""Insert the tables that runs have written into README.md and docs/, between their markers.

A marker is `<!-- table: FILE -->` or `<!-- table: FILE | columns: A, B, ... | rows: C, D, ... -->`,
which selects columns, and rows by their first cells, and drops the notes between the table and its
last paragraph, the provenance. `FILE | section: BEGINNING | columns: ...` takes the table of the
section whose heading begins so. The block ends with `<!-- end -->`. How weights were trained and
the versions of packages are left to the file.
"""

import re
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Groups: the marker, its FILE, section, columns and rows, and the end.
BLOCK = re.compile(
    r"(<!-- table: ([^ ]+)(?: \| section: ([^\n|]+?))?(?: \| columns: ([^\n|]+?))?"
    r"(?: \| rows: ([^\n]+?))? -->\n)"
    r".*?(<!-- end -->)",
    re.DOTALL,
)
LEFT_OUT = re.compile(r" trained with [^;]+? steps| torch [^ ]+, transformers [^ ]+;")


def pages() -> list[Path]:
    """List the pages that may contain marked blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill_tables(text: str) -> str:
    """Replace the body of every marked block by the table of the file that its marker names, with
    the text around it, but without headings, lists and LEFT_OUT.
    """

    def body(match: re.Match[str]) -> str:
        start, file, section, columns, rows, end = match.groups()
        text = (ROOT / file).read_text("utf-8")
        if section:
            _, _, after_heading = text.partition(f"\n## {section}")[2].partition("\n")
            text = after_heading.partition("\n## ")[0]
        lines = text.strip().splitlines()
        kept = "\n".join(line for line in lines if not line.startswith(("#", "* "))).strip()
        if columns or rows:
            kept = select(kept, *(names.split(", ") if names else [] for names in (columns, rows)))
        return f"{start}{LEFT_OUT.sub('', kept)}\n{end}"

    return BLOCK.sub(body, text)


def select(text: str, columns: list[str], chosen: list[str]) -> str:
    """Reduce the first table of a text to the named columns and chosen rows, or to all if none are
    named, and the paragraphs after it to the last one, if that is the provenance. A row is named by
    as many of its first cells as tell it apart.
    """
    paragraphs = re.split(r"\n{2,}", text)
    first = next(i for i, paragraph in enumerate(paragraphs) if paragraph.startswith("|"))
    table, *notes = paragraphs[first:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    indices = [rows[0].index(column) for column in columns or rows[0]]
    if chosen:
        named = (row for row in rows[2:] if {*accumulate(row, "{} {}".format)} & {*chosen})
        rows = [*rows[:2], *named]  # the heads, and the line below them
    short = "\n".join(f"| {' | '.join(row[index] for index in indices)} |" for row in rows)
    return "\n\n".join([short, *(note for note in notes[-1:] if "ulskip " in note)])


if __name__ == "__main__":
    for page in pages():
        old = page.read_text("utf-8")
        if (new := fill_tables(old)) != old:
            page.write_text(new, "utf-8")
