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
    assert text.count("\n## ") == 2 and text.count("llama_cpp q4_0") >= 2
    assert frontier.page([], tmp_path).startswith("# ")
    use = frontier.use_page(frontiers(rows))
    assert (
        use.count("\n| m | 1 | 1.25x, 1.5x | ") == 1 and "llama_cpp q4_0, unified 3/6: 1.80x" in use
    )
    assert "\n## m\n" in use and "; weights of m" in use.splitlines()[-1]


def test_the_plot_has_a_label_for_each_engine_and_format_and_for_drafts():
    asked = {"baseline_engine": "torch", "engine": {"name": "llama_cpp"}}
    int4 = {"engine": "llama_cpp", "engine_weights": "q4_0", "target": 3.0, "config": asked}
    drafts = {"engine": "speculative", "config": {"decoding": {"draft_tokens": 2}}}
    rows = [sweep_row("full", id="base", engine="torch")]
    for name, values in (("half", {"engine": "torch"}), ("int4", int4), ("drafts", drafts)):
        rows.append(sweep_row(id=name, baseline_id="base", **values))
    (found,) = frontiers(rows)
    (axes,) = frontier.plot(found).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["torch", "drafts", "llama_cpp q4_0"]
