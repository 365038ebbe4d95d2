"""Insert the tables that runs have written into README.md and docs/, between their markers.

A marker is `<!-- table: FILE -->` or `<!-- table: FILE | columns: A, B, ... -->`, which selects columns and drops the notes
between the table and its last paragraph, the provenance. `<!-- sentence: FILE | BEGINNING -->` marks a sentence of a file
instead. `<!-- combinations: engines -->` (or commands, options) marks a table of what works together, which is printed from the
sets of the package. The block ends with `<!-- end -->`.
"""

import re
from collections.abc import Mapping, Set
from pathlib import Path

from ulskip_cli.core.capabilities import COMMANDS, TOGETHER, Need
from ulskip_cli.core.engines import ENGINES

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- table: ([^ ]+)(?: \| columns: ([^\n]+?))? -->\n).*?(<!-- end -->)", re.DOTALL)
SENTENCE = re.compile(r"(<!-- sentence: ([^ ]+) \| ([^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
COMBINATIONS = re.compile(r"(<!-- combinations: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """List the pages that may contain marked blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill_tables(text: str) -> str:
    """Replace the body of every marked block by the table of the file that its marker names."""

    def body(match: re.Match[str]) -> str:
        lines = (ROOT / match[2]).read_text("utf-8").strip().splitlines()
        kept = "\n".join(line for line in lines if not line.startswith(("#", "* "))).strip()
        return f"{match[1]}{select(kept, match[3].split(', ')) if match[3] else kept}\n{match[4]}"

    def sentence(match: re.Match[str]) -> str:
        found = re.search(rf"^{re.escape(match[3])}.*?\.(?=\s)", (ROOT / match[2]).read_text("utf-8"), re.MULTILINE)
        assert found, f"expected a sentence '{match[3]} ...' at the beginning of a line of {match[2]}"
        return f"{match[1]}{found[0]}\n{match[4]}"

    def combinations(match: re.Match[str]) -> str:
        tables = {
            "engines": support({name: ENGINES[name].supports for name in ENGINES if name != "auto"}),
            "commands": support(COMMANDS),
            "options": exclusions(),
        }
        return f"{match[1]}{tables[match[2]]}\n{match[3]}"

    return COMBINATIONS.sub(combinations, SENTENCE.sub(sentence, BLOCK.sub(body, text)))


def support(sets: Mapping[str, Set[Need]]) -> str:
    """Return the table of the needs that some of the sets lack."""
    lines = [["", *(f"`{name}`" for name in sets)], ["---"] * (len(sets) + 1)]
    for need in Need:
        cells = ["yes" if need in supported else "–" for supported in sets.values()]
        if "–" in cells:
            lines.append([need.text, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def exclusions() -> str:
    """Return the table of the needs that exclude others."""
    lines = ["| | not together with |", "| --- | --- |"]
    for need, allowed in TOGETHER.items():
        lines.append(f"| {need.text} | {', '.join(other.text for other in Need if other not in allowed)} |")
    return "\n".join(lines)


def select(text: str, columns: list[str]) -> str:
    """Reduce a table to some columns, and the paragraphs after it to the last one."""
    table, *notes = re.split(r"\n{2,}", text)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    places = [rows[0].index(column) for column in columns]
    short = "\n".join(f"| {' | '.join(row[place] for place in places)} |" for row in rows)
    return "\n\n".join([short, *notes[-1:]])


if __name__ == "__main__":
    for page in pages():
        old = page.read_text("utf-8")
        if (new := fill_tables(old)) != old:
            page.write_text(new, "utf-8")
