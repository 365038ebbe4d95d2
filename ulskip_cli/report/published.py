"""Speeds that the paper published, beside our own."""

from collections.abc import Sequence
from statistics import median

from ulskip_cli.experiments.record import Row
from ulskip_cli.report.columns import Column, number, text

BATCHES = (1, 2, 8)
# Tokens/s of prompt and generated ids at those batch sizes. Table 4, arXiv:2404.06954.
TABLE_4: dict[tuple[float, str], tuple[int | None, int | None, int | None]] = {
    (1, "full"): (51, 92, 303),
    (2, "early_exit"): (73, None, None),
    (2, "skip_decode"): (67, 127, 387),
    (2, "unified"): (90, 159, 503),
    (5, "early_exit"): (167, None, None),
    (5, "skip_decode"): (154, 285, 864),
    (5, "unified"): (201, 332, 1004),
}
SHAPES = ("bloom-7b1", "bigscience/bloom-7b1", "bigscience/bloomz-7b1", "bigscience/bloomz-7b1-mt")
EXPERIMENT = "paper_throughput"
TITLE = "Beside the paper's table 4"
CAVEAT = (
    "tokens/s of prompt and generated ids; x: over full, prompt included. The paper: BLOOMZ-7B answering WMT22 on one "
    "A100-80G. Ours: other hardware, random prompts of one length, so that ratios compare and tokens/s do not. Weight bytes "
    "of BLOOM-7B1 allow 1.75x and 3.16x in decoding; the paper's 5x is more, so time that is not reading weights was part "
    "of its full model's steps."
)


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The rows that stand beside the paper's: of its model's shape, or of a trial of the preset with another one."""
    return [row for row in rows if row["model"] in SHAPES or row["experiment"] == EXPERIMENT]


def comparison(rows: Sequence[Row], labels: Sequence[str]) -> tuple[list[Row], list[Column]]:
    """A line a target, approach and batch size of the paper, and the columns of a table of them.

    Args:
        rows: of a bench.
        labels: what each row was decoded by; a pair of columns each.
    """
    lines = []
    for (target, approach), published in TABLE_4.items():
        for batch, speed, full in zip(BATCHES, published, TABLE_4[1, "full"], strict=True):
            if speed is None or full is None:
                continue
            line = {"target": f"{target:g}x", "approach": approach, "batch": batch, "paper": speed, "paper_x": speed / full}
            for label in dict.fromkeys(labels):
                own = [row for row, its in zip(rows, labels, strict=True) if its == label and row["batch_size"] == batch]
                line |= _ours(own, target, approach, label)
            lines.append(line)
    columns = [Column(key, text(key), key) for key in ("target", "approach", "batch")]
    columns += [Column("paper\ntok/s", number("paper", ".0f"), "paper"), Column("x", number("paper_x"), "paper_x")]
    for label in dict.fromkeys(labels):
        columns += [Column(f"{label}\ntok/s", number(label, ".0f"), label), Column("x", number(f"{label}_x"), f"{label}_x")]
    return lines, columns


def _ours(rows: Sequence[Row], target: float, approach: str, label: str) -> Row:
    """Our tokens/s and speedup of one cell; nothing where it was not measured. Full is in every row."""
    if approach == "full":
        speeds = [row["full"]["total_tokens_per_second"] for row in rows]
        return {label: median(speeds), f"{label}_x": 1.0} if speeds else {}
    found = next((row for row in rows if (row["target_speedup"], row["strategy"]) == (target, approach)), None)
    return {label: found["total_tokens_per_second"], f"{label}_x": found["end_to_end_speedup"]} if found else {}
