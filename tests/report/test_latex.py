from report_rows import not_applicable, small_sweep

from ulskip_cli.report import latex, table4
from ulskip_cli.report.columns import columns_for
from ulskip_cli.report.table import cells_of


def test_booktabs_with_what_is_special_escaped():
    (one,) = table4.tables([*small_sweep(), not_applicable()])
    text = latex.booktabs(cells_of(one.lines, one.columns), one.columns, "50% & more_of it", "t4", 2)
    assert r"\begin{tabular}{llrrrrrr}" in text
    assert r"\caption{50\% \& more\_of it}\label{tab:t4}" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"2x & top\_skip & 3/6 & 20.00 & 1.70 & 1.80 & 180 & 1440 \\" in text
    assert r"early\_exit & N/A" in text


def test_many_rows_are_a_longtable():
    rows = small_sweep() * 5
    text = latex.booktabs(cells_of(rows, columns_for(rows)), columns_for(rows), "all", "long")
    assert text.startswith(r"\begin{longtable}")
    assert r"\endhead" in text


def test_every_special_character_is_escaped():
    assert latex.escape(r"a\b~c^d_{e}") == r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\_\{e\}"
