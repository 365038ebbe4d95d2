"""Tables for a paper: LaTeX with booktabs."""

from collections.abc import Sequence

from ulskip_cli.report.columns import Column

_SPECIAL = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "–": "--",
        "·": r"\textperiodcentered{}",
        "*": r"\textsuperscript{*}",
        "…": r"\ldots{}",
    }
)
HEADER = "% needs \\usepackage{booktabs}, and longtable where a table is longer than a page"
LONGEST = 40  # lines that a table on one page may have


def escape(text: str) -> str:
    r"""Text as LaTeX prints it.

    >>> escape("top_skip & 50%")
    'top\\_skip \\& 50\\%'
    """
    return text.translate(_SPECIAL)


def booktabs(cells: Sequence[Sequence[str]], columns: Sequence[Column], caption: str, label: str, words: int = 1) -> str:
    """A table environment, or a longtable for many rows.

    Args:
        cells: a list a line.
        columns: of the table; the first `words` of them stand left, the others right.
        caption: above the table.
        label: for references, `tab:` before it.
        words: how many columns are words.
    """
    align = "l" * words + "r" * (len(columns) - words)
    head = " & ".join(escape(column.head) for column in columns) + r" \\"
    body = [" & ".join(map(escape, line)) + r" \\" for line in cells]
    title = rf"\caption{{{escape(caption)}}}\label{{tab:{label}}}"
    if len(cells) > LONGEST:
        top = [rf"\begin{{longtable}}{{{align}}}", title + r" \\", r"\toprule", head, r"\midrule", r"\endfirsthead"]
        again = [r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        return "\n".join([*top, *again, *body, r"\end{longtable}", ""])
    top = [r"\begin{table}", r"\centering", title, rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])
