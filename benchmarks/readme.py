"""Insert the tables that runs have written into README.md, between their markers."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_tables(text: str) -> str:
    """Replace every marked block of README by the body of the file that its marker names."""

    def body(match: re.Match[str]) -> str:
        lines = (ROOT / match[2]).read_text("utf-8").strip().splitlines()
        kept = [line for line in lines if not line.startswith(("#", "* "))]
        return f"{match[1]}{chr(10).join(kept).strip()}\n{match[3]}"

    return BLOCK.sub(body, text)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(fill_tables(path.read_text("utf-8")), "utf-8")
