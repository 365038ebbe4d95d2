"""The paper's table 4 beside our rows: what each kept of its full model, and by how much each was faster."""

from collections.abc import Callable, Sequence

from ulskip_cli.experiments.record import Row
from ulskip_cli.report.columns import Column, number, text
from ulskip_cli.report.gate import METRICS, primary, quality
from ulskip_cli.report.groups import Group
from ulskip_cli.report.published import BATCHES, TABLE_4
from ulskip_cli.report.status import MISSING, absent, done

# BLEU, WMT22, mean of four directions. Table 4, arXiv:2404.06954.
BLEU: dict[tuple[float, str], float] = {
    (1, "full"): 23.81,
    (2, "early_exit"): 17.82,
    (2, "skip_decode"): 20.70,
    (2, "unified"): 21.23,
    (5, "early_exit"): 10.02,
    (5, "skip_decode"): 11.52,
    (5, "unified"): 14.87,
}
CAVEAT = (
    "the paper: BLOOMZ-7B, WMT22, mean of four directions, on one A100-80G. Other model, data and hardware than ours: scores "
    "and tokens/s do not compare, only shares of full and x over full, and these with care: what skipping saves depends on how "
    "much of a step reads weights. x: tokens/s of prompt and generated ids over full's at the same batch size; ours from "
    "paired timings where there are some"
)


def comparison(group: Group, gate: float) -> tuple[list[Row], list[Column]]:
    """A line a target and approach that the paper or we have, and the columns of a table of them.

    Args:
        group: rows of one setting.
        gate: share of full's quality that counts as kept.
    """
    metric, judged = primary(group.rows), quality(group, gate)
    ours: dict[tuple[float, str], dict[int, Row]] = {}
    for row in group.rows:
        if row.get("target_speedup") is not None:
            ours.setdefault((row["target_speedup"], group.approach(row)), {})[row["batch_size"]] = row
    lines = []
    for target, approach in sorted({*TABLE_4, *ours}, key=_order):
        by_batch = ours.get((target, approach), {})
        line: Row = {"target": f"{target:g}x", "approach": approach, **_published(target, approach)}
        if by_batch:
            first = by_batch[min(by_batch)]
            own = judged.get(id(first))
            line |= {"status": first.get("status"), "bleu": first.get(metric) if metric else None}
            line |= {"share": own.share if own else None}
            line |= {f"x{size}": _over_full(row, group) for size, row in by_batch.items()}
            line |= {f"tokens{size}": row.get("total_tokens_per_second") for size, row in by_batch.items()}
        lines.append(line)
    name = METRICS[metric] if metric else "BLEU"
    columns = [
        Column("target", text("target"), "target"),
        Column("approach", text("approach"), "approach"),
        Column("paper\nBLEU", _paper("paper_bleu", ".2f"), "paper_bleu"),
        Column(f"ours\n{name}", number("bleu"), "bleu"),
        Column("paper\nof full", _paper("paper_share", ".0%"), "paper_share"),
        Column("ours\nof full", number("share", ".0%"), "share"),
    ]
    for turn, size in enumerate(BATCHES):
        columns += [
            Column(f"paper\nx b{size}", _paper(f"paper_x{size}", ".2f"), f"paper_x{size}", leaves=4 if turn == 1 else 0),
            Column(f"ours\nx b{size}", number(f"x{size}"), f"paper_x{size}", leaves=4 if turn == 1 else 0),
            Column(f"paper\ntok/s b{size}", _paper(f"paper_tokens{size}", ".0f"), f"paper_tokens{size}", leaves=1 + turn),
            Column(f"ours\ntok/s b{size}", number(f"tokens{size}", ".0f"), f"paper_tokens{size}", leaves=1 + turn),
        ]
    return lines, columns


def note(group: Group) -> str:
    """The caveat, with what ours were measured on."""
    machines = dict.fromkeys(_machine(row) for row in done(group.rows) if row.get("environment"))
    return f"{CAVEAT}. Ours: {group.label}, on {'; '.join(machines) or 'hardware that the rows do not tell'}"


def _published(target: float, approach: str) -> Row:
    speeds = TABLE_4.get((target, approach))
    if speeds is None:
        return {}
    found: Row = {
        "paper_bleu": BLEU[target, approach],
        "paper_share": BLEU[target, approach] / BLEU[1, "full"],
        "paper": True,
    }
    for size, speed, full in zip(BATCHES, speeds, TABLE_4[1, "full"], strict=True):
        if speed is not None and full is not None:
            found |= {f"paper_tokens{size}": speed, f"paper_x{size}": speed / full}
    return found


def _over_full(row: Row, group: Group) -> float | None:
    if row["strategy"] == "full":
        return 1.0 if row.get("total_tokens_per_second") else None
    if row.get("end_to_end_speedup") is not None:
        return float(row["end_to_end_speedup"])
    fulls = [one for one in group.rows if one["strategy"] == "full" and one["batch_size"] == row["batch_size"]]
    known = [one["total_tokens_per_second"] for one in fulls if one.get("total_tokens_per_second")]
    return row["total_tokens_per_second"] / known[0] if known and row.get("total_tokens_per_second") else None


def _paper(key: str, form: str) -> Callable[[Row], str]:
    """The paper's figure; N/A where its table has the line and not the cell, a dash where it has no such line."""

    def show(line: Row) -> str:
        if line.get(key) is not None:
            return format(line[key], form)
        return absent({"status": "n/a"}) if line.get("paper") else MISSING

    return show


def _machine(row: Row) -> str:
    facts = row["environment"]
    return str(facts.get("accelerator") or f"{facts.get('processor')}, {facts.get('threads')} threads")


def _order(point: tuple[float, str]) -> tuple[float, bool, str]:
    """By target; unified last, as in the paper."""
    return point[0], point[1] == "unified", point[1]


def worth(groups: Sequence[Group]) -> list[Group]:
    """The groups that have something to stand beside the paper: quality or timings."""
    return [group for group in groups if any(row.get("total_tokens_per_second") for row in done(group.rows))]
