"""Reports on stored rows: tables, plots, comparisons, the paper's table 4 and an HTML page. No model is loaded.

`rows` reads and groups rows, `quality` and `compare` judge them, `tables`, `paper`, `benchmark`, `plots` and `html_page` write
them, and `build` does all of it for `ulskip report`. The package imports experiments, strategies, tasks and core, and loads no
torch. Start reading with `build.py`, then `rows.py`.
"""
