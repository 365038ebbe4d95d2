from report_rows import small_sweep

from ulskip_cli.report.table4 import markdown, tables


def row(strategy, target, batch, bleu, speed, measured=1.5):
    kept = list(range(round(12 / target)))
    return {
        "model": "m", "task": "wmt", "pair": "de-en", "decoding": "greedy", "strategy": strategy, "target_speedup": target,
        "batch_size": batch, "bleu": bleu, "total_tokens_per_second": speed, "predicted_speedup": 1.6,
        "measured_speedup": measured, "kept_layers": kept, "num_layers": 12,
    }  # fmt: skip


def test_a_line_a_target_and_approach_with_speed_by_batch():
    rows = [
        row("unified", 2.0, 8, 13.0, 900),
        row("unified", 2.0, 1, 13.1, 100),
        row("full", 1.0, 1, 14, 50),
        row("top_skip", 2.0, 1, 9, 99),
    ]
    lines = markdown(tables(rows)).splitlines()
    assert lines[0] == "| target | approach | layers | BLEU | predicted | measured | tokens/s, batch 1 | tokens/s, batch 8 |"
    assert lines[2] == "| 1x | full | 12/12 | 14.00 | 1.60 | 1.50 | 50 | – |"
    assert lines[3].startswith("| 2x | top_skip | 6/12 | 9.00 |")
    assert lines[4] == "| 2x | unified | 6/12 | 13.10 | 1.60 | 1.50 | 100 | 900 |"


def test_models_have_tables_of_their_own_and_custom_schedules_none():
    other = {**row("unified", 2.0, 1, 5, 10), "model": "n"}
    custom = {**row("custom", 2.0, 1, 5, 10), "target_speedup": None}
    text = markdown(tables([row("unified", 2.0, 1, 5, 10), other, custom]))
    assert text.count("## ") == 2
    assert "custom" not in text


def test_the_tasks_first_metric_is_shown():
    rows = [row | {"config": {"task": {"metrics": ["chrf"]}}} for row in small_sweep()]
    (made,) = tables(rows)
    assert "chrF" in [column.title for column in made.columns]
    assert "BLEU" not in [column.title for column in made.columns]
