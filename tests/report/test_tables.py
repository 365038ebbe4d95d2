import csv
import io

import pytest
from report_rows import bench_row, compared, configured, sweep_row
from rich.console import Console

from ulskip_cli.report import tables


def lines_of(section):
    return [dict(zip(section.heads, line, strict=True)) for line in section.cells]


FULL, HALF = sweep_row("full", batch=8), sweep_row(batch=8, bleu=25.0, predicted_speedup=None)
OVER = {"strategy": {"name": "full"}, "baseline_engine": "torch"}
ENGINES = [
    *(bench_row(ratio, size) for size in (8, 1) for ratio in (3.0, 2.0)),
    *(bench_row(ratio, engine="transformers") for ratio in (3.0, 2.0)),
    bench_row(1.0, engine="transformers", config=OVER),
]


def test_speedups_stand_side_by_side_with_interval_and_number_of_pairs():
    long = tables.long_section([HALF, FULL])
    keys = ("layers", "target", "layer ratio", "predicted", "measured", "interval", "pairs", "BLEU")
    full, half = (" ".join(line[key] for key in keys) for line in lines_of(long))
    assert full == "6/6 1 1.00 1.00 1.00 – 7 30.0"
    assert half == "3/6 2 2.00 – 1.80 1.78 to 1.82 7 25.0*"
    assert tables.markdown(long).splitlines()[1].startswith("| --- | ---: |")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_a_benchmark_fits_a_terminal(width):
    console = Console(width=width, record=True, file=io.StringIO(), markup=False)
    console.print(tables.draw(tables.short_section(ENGINES), width, tables.TABLE_FILE))
    text = console.export_text()
    assert "…" not in text and "1.88 to 1.92" in text
    assert "tiny · greedy · random prompts of 64 tokens, 32 new ones" in " ".join(text.split())


def test_a_benchmark_shows_engines_bandwidth_and_what_varies():
    section = tables.short_section(ENGINES)
    lines = lines_of(section)
    (over,) = (line for line in lines if line["full in"] != "–")
    assert (over["strategy"], over["engine"], over["full in"]) == ("full", "transformers", "torch")
    assert {line["of bandwidth"] for line in lines} == {"25%"}
    assert "10 GB/s" in section.note and "Full in" in section.note
    assert {line["batch size"] for line in lines} == {"1", "8"}
    longer = bench_row(3.0, config={"speed": {"prompt_tokens": 512}})
    assert "speed prompt tokens" in tables.short_section([bench_row(), longer]).heads
    assert "of bandwidth" not in tables.short_section([HALF.replace(step_bytes=1)]).heads


def test_csv_has_every_value_but_the_pairs_under_the_row_keys():
    full, half = csv.DictReader(io.StringIO(tables.to_csv([FULL.replace(reason="=1+1"), HALF])))
    assert (half["kept_layers"], half["batch_size"]) == ("[0, 2, 5]", "8")
    assert (full["bleu"], full["reason"], half["reason"]) == ("30.0", "'=1+1", "")
    assert not [key for key in full if key.startswith("pairs")]


def test_code_machine_and_weights_are_told_once():
    commits = [FULL.environment.replace(git_commit=commit) for commit in ("abc", "def")]
    rows = [FULL.replace(environment=facts, training=None) for facts in commits]
    text = tables.provenance([*rows, *rows])
    assert text.startswith("ulskip 0 at abc, 0 at def; torch 2, transformers 5; CPU, 2 threads")
    assert text.endswith("weights of m.") and "\n" not in text
    changed = FULL.replace(environment=commits[0].replace(git_dirty=True))
    text = tables.provenance([changed])
    assert "abc (modified)" in text and "weights of m trained with skipping" in text


def test_rows_of_several_tasks_are_compared_with_their_own_full_model():
    news = {"task": {"name": "cnn_dm"}}
    scores = {"bleu": None, "chrf": None}
    rows = [FULL, HALF]
    for row, score in ((FULL, 40.0), (HALF, 30.0)):
        against_full = {"rougeL": compared(40.0, 30.0, 2.0)} if row is HALF else {}
        scores |= {"rouge1": score, "rougeL": score, "vs_baseline": against_full}
        row = configured(row, **news).replace(**scores)
        rows.append(row.replace(id=f"{row.id}-news"))
    lines = lines_of(tables.short_section(rows))
    assert [line["of full"] for line in lines] == ["100%", "75%", "100%", "83%"]
    assert all({line["BLEU"], line["R-L"]} > {"–"} for line in lines)


def test_scores_of_the_harness_are_columns_of_all_tables():
    row = sweep_row(lm_eval={"acc": 0.5, "acc_stderr": 0.1, "acc_norm strict": 0.25})
    for make in (tables.long_section, tables.short_section):
        (line,) = lines_of(make([row]))
        assert (line["acc"], line["acc norm strict"]) == ("0.5±0.1", "0.25")


def test_a_first_reader_sees_few_columns_and_the_share_of_full():
    section = tables.short_section([FULL, HALF.replace(predicted_speedup=1.7)])
    assert lines_of(section)[1]["of full"] == "83%"
    for made in (section, tables.long_section([FULL, HALF])):
        full, half = (line["of full, 95%"] for line in lines_of(made))
        assert (full, half) == ("–", "80% to 87%")


def test_tokens_per_second_come_from_the_timed_pairs_or_are_left_out():
    evaluated = HALF.replace(decode_tokens_per_second=999.0, throughput_from="evaluation")
    untimed = dict.fromkeys(("pairs", "measured_speedup"))
    for make in (tables.long_section, tables.short_section):
        (line,) = lines_of(make([evaluated]))
        assert (line["full tok/s"], line["decode tok/s"]) == ("400", "720")
        heads = make([evaluated.replace(**untimed)]).heads
        assert not {"decode tok/s", "full tok/s", "total tok/s"} & set(heads)
