from recipe import load_recipe
from report_rows import sweep_row

frontier = load_recipe("frontier/reproduce.py")
FULL = sweep_row("full", id="base", engine="torch")
TWO_DEPTHS = {"mean_kept_layers": 2.0, "evaluated_mean_kept_layers": 4.0}


def row(name, speedup, bleu, engine="torch", **more):
    """Return a row that is compared with the full model in torch."""
    config = {"baseline_engine": "torch"}
    if engine == "llama_cpp":
        config["engine"] = {"name": engine}
    values = {"id": name, "engine": engine, "baseline_id": "base", "config": config}
    return sweep_row("unified", bleu=bleu, speedup=speedup, **{**values, **more})


def lines(page):
    """Return the cells of the lines of a page's tables, without heads."""
    table = [text.strip("| ").split(" | ") for text in page.splitlines() if text.startswith("|")]
    return [cells for cells in table if cells[0] in ("yes", "no")]


def test_the_page_has_a_table_for_each_model_with_its_front():
    rows = [
        FULL,
        row("half", 1.8, 29.0, config={}),
        row("half-int4", 4.0, 27.0, "llama_cpp", engine_weights="q4_0"),
        row("half-f16", 3.0, 26.0, "llama_cpp", engine_weights="f16"),
        row("drafts", 1.3, 30.0, "speculative", config={"decoding": {"draft_tokens": 2}}),
        row("two-depths", 9.0, 30.0, **TWO_DEPTHS),
        sweep_row("unified", id="elsewhere", baseline_id="full-1-1"),
    ]
    page = frontier.page(rows)
    assert page.count("\n## ") == 1 and "\n## m · wmt · de-en · sample\n" in page
    assert "; weights of m" in page.splitlines()[-1]
    assert [cells[:4] for cells in lines(page)] == [
        ["no", "1", "torch", "full"],
        ["yes", "1", "torch", "unified drafts"],
        ["yes", "1", "torch", "unified"],
        ["no", "1", "llama_cpp f16", "unified"],
        ["yes", "1", "llama_cpp q4_0", "unified"],
    ]
    assert lines(page)[0][5:] == ["1.00 (1.00 to 1.00)"] * 2 + ["30.0", "100.0%"]


def test_each_batch_size_has_its_front():
    full = sweep_row("full", id="full-of-four", engine="torch", batch=4)
    other = row("four", 1.2, 29.0, batch=4, baseline_id=full.id)
    page = frontier.page([FULL, full, row("one", 1.5, 29.5), other])
    assert page.count("\n## ") == 1
    assert [cells[:2] for cells in lines(page)] == [["yes", "1"]] * 2 + [["yes", "4"]] * 2
