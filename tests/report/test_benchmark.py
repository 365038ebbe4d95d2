import io

import pytest
from report_rows import bench_row, sweep_row, write_folder
from rich.console import Console

from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import benchmark, tables

ENGINES = [
    bench_row(target, batch, engine)
    for batch in (8, 1)
    for engine in ("transformers", "torch")
    for target in (3.0, 2.0)
]

OTHER = {"model": {"name": "other", "source": "bundled", "path": "other"}}
FULL = {"decode_tokens_per_second": 100.0, "total_tokens_per_second": 150.0}


def shown(rows, width):
    console = Console(width=width, record=True, file=io.StringIO(), markup=False)
    console.print(tables.draw(benchmark.section(rows), width, benchmark.FILE))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_a_terminal(width):
    text = shown(ENGINES, width)
    assert "…" not in text
    assert "0.94" not in text and "1.88 to 1.92" in text
    assert "tiny · float32 · 64 prompt tokens · 32 new tokens" in " ".join(text.split())
    assert "paper" not in text


def test_what_varies_gets_a_column():
    rows = [bench_row(), bench_row(3.0, timed_prompt_tokens=512)]
    heads = benchmark.section(rows).heads
    assert heads[:3] == ["batch", "engine", "timed prompt tokens"]


def test_the_folder_gets_tables_and_provenance(tmp_path):
    folder = tmp_path / "bench"
    rows = [*ENGINES, bench_row(), bench_row(3.0)]
    write_folder(folder, [*rows, sweep_row()])
    benchmark.write_bench_report(ResultsFolder(folder))
    text = (folder / "bench.md").read_text()
    assert text.startswith("# tiny · greedy")
    assert "| 1 | torch | 6/12 | 2 | 1.80 | 1.90 | 1.88 to 1.92 | 100 | 200 | 50% |" in text
    assert "10.0 GB/s (cpu, 2 threads)" in text
    assert "torch 2, transformers 5" in text


def test_engines_of_the_same_rounds_are_compared_with_their_interval():
    rows = []
    for engine, ratio, margin in (("torch", 1.0, 0.03), ("transformers", 0.5, 0.1)):
        ends = {"over_reference_low": ratio - margin, "over_reference_high": ratio + margin}
        compared = {"reference_engine": "torch", "over_reference": 2 * ratio}
        full = {**FULL, **ends, "over_reference": ratio}
        rows.append(bench_row(2.0, engine=engine, full=full, **compared))
    torch, transformers = benchmark.section(rows).frame.to_dict("records")
    assert (torch["full over torch"], torch["over torch"]) == ("–", "2.00")
    assert (transformers["full over torch"], transformers["over torch"]) == ("0.50", "1.00")
    assert "0.40 to 0.60" in transformers.values()


def test_the_fastest_engine_of_each_batch_size_is_named():
    rates = [("torch", 1, 130), ("llama_cpp", 1, 120), ("torch", 8, 120), ("llama_cpp", 8, 150)]
    rows = [bench_row(2.0, size, name, rate=rate) for name, size, rate in rates]
    (line,) = benchmark.fastest(rows)
    assert "torch at batch 1 (130 tok/s, 200 with 6/12 layers), llama_cpp at batch 8 (150" in line
    assert benchmark.fastest(rows[:1]) == benchmark.fastest([*rows, bench_row(config=OTHER)]) == []


def test_the_lead_is_a_point_with_a_gain_where_one_exists():
    unsure = bench_row(3.0, measured_speedup_low=0.7)
    assert "no measurable gain" in benchmark.bench_lead([unsure])[-1]
    assert "decodes 1.90x as fast" in benchmark.bench_lead([unsure, bench_row(2.0)])[-1]
