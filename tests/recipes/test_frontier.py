from recipe import load_recipe
from report_rows import sweep_row

from ulskip_cli.report.frontier import frontiers

frontier = load_recipe("frontier/reproduce.py")


def test_the_page_has_a_plot_and_two_tables_for_each_baseline(tmp_path):
    asked = {"task": {"metrics": ["bleu"]}, "baseline_engine": "torch"}
    int4 = {"engine": "llama_cpp", "engine_weights": "q4_0"}
    rows = [
        sweep_row("full", id="base", engine="torch"),
        sweep_row("unified", id="half", baseline_id="base", config=asked, **int4),
    ]
    text = frontier.page(frontiers(rows), tmp_path)
    assert (tmp_path / "frontier-m-sample.png").is_file() and "(frontier-m-sample.png)" in text
    assert text.count("\n## ") == 3 and text.count("llama_cpp q4_0") >= 2
    assert frontier.page([], tmp_path).startswith("# ")
