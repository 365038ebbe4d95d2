"""Reports on stored rows: tables, a plot, comparisons, the paper's table 4 and an HTML page. No
model is loaded.

`columns` lists what tables show of a row. `rows` reads and groups rows. `pairs` compares a row with
another one, by which `verdicts` judges rows. `tables`, `paper`, `plots` and `html_page` write
reports. `build` runs these steps but the page for `ulskip report`. The package imports no torch.
Start with `build.py`, then `rows.py`.
"""
