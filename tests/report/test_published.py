from bench_rows import bench_row

from ulskip_cli.report.published import TABLE_4, comparable, comparison


def test_only_the_papers_shape_and_trials_of_its_preset_are_compared():
    rows = [bench_row(), bench_row(model="bloom-7b1"), bench_row(experiment="paper_throughput")]
    assert comparable(rows) == rows[1:]


def test_ours_stand_beside_the_papers():
    rows = [bench_row(2.0, 8), bench_row(5.0, 8), bench_row(2.0, 8, compiled=True)]
    lines, columns = comparison(rows, ["fast", "fast", "fast, compiled"])
    assert len(lines) == 3 * len(TABLE_4) - 4  # early exit has batch 1 alone
    cells = {tuple(line[key] for key in ("target", "approach", "batch")): [c.show(line) for c in columns[3:]] for line in lines}
    assert cells["2x", "unified", 8] == ["503", "1.66", "300", "1.60", "300", "1.60"]
    assert cells["1x", "full", 8] == ["303", "1.00", "150", "1.00", "150", "1.00"]
    assert cells["5x", "unified", 8] == ["1004", "3.31", "750", "4.00", "–", "–"]
    assert cells["2x", "unified", 1] == ["90", "1.76", "–", "–", "–", "–"]
    assert cells["2x", "early_exit", 1] == ["73", "1.43", "–", "–", "–", "–"]
