"""The table, the plots and the page of the Multi30k reproduction, from its rows alone.

python recipes/multi30k/report.py --results results/multi30k
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from sacrebleu.metrics.bleu import BLEU

from ulskip_cli.metrics.translation import compare
from ulskip_cli.report.table import provenance
from ulskip_cli.results import read_jsonl, write_whole

NAMES = {"full": "full (control)", "unified": "unified", "top_skip": "top skip", "bottom_skip": "bottom skip"}
COLOURS = {"unified": "tab:blue", "top_skip": "tab:orange", "bottom_skip": "tab:green"}
RATIOS = (2.0, 3.0, 6.0)


class Rows:
    """Rows by checkpoint, and the comparisons between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.quality, self.speed = {}, {}
        for row in {row["id"]: row for row in read_jsonl(folder / "runs.jsonl")}.values():
            weights = Path(row["model"]).name
            if row["config"]["speed"]["enabled"]:
                self.speed[row["strategy"], row["target_speedup"], row["batch_size"]] = row
            else:
                self.quality[weights, row["strategy"], row["target_speedup"]] = row

    def tuned(self, strategy: str, ratio: float, seed: int = 1, variant: str = "") -> dict | None:
        name = "-".join(filter(None, [strategy, f"{ratio:g}x", variant, f"s{seed}"]))
        return self.quality.get((name, strategy, ratio))

    def seeds(self, strategy: str, ratio: float) -> list[dict]:
        return [row for seed in (1, 2, 3) if (row := self.tuned(strategy, ratio, seed))]

    def texts(self, row: dict) -> list[dict]:
        return read_jsonl(self.folder / "generations" / f"{row['id']}.jsonl")

    def difference(self, one: dict, other: dict) -> dict:
        """BLEU of one minus BLEU of the other with the paired bootstrap's interval."""
        own, others = self.texts(one), self.texts(other)
        return compare(BLEU(), [t["hypothesis"] for t in own], [t["hypothesis"] for t in others], [t["reference"] for t in own])


def bleu(rows: list[dict]) -> str:
    if not rows:
        return "–"
    values = [row["bleu"] for row in rows]
    spread = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def table(rows: Rows) -> str:
    """Table 4's layout: target, approach, quality, tokens/s by batch."""
    batches = sorted({batch for _, _, batch in rows.speed})
    control = rows.seeds("full", 1.0)
    heads = [
        "target",
        "approach",
        "layers",
        "untrained BLEU",
        "BLEU",
        "share of control",
        "measured",
        *(f"tokens/s b{b}" for b in batches),
    ]
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for ratio in (1.0, *RATIOS):
        for strategy in ("full",) if ratio == 1 else COLOURS:
            found, untrained = rows.seeds(strategy, ratio), rows.quality.get(("base", strategy, ratio))
            if not found:
                continue
            timed = [rows.speed.get((strategy, ratio, batch)) for batch in batches]
            share = mean(row["bleu"] for row in found) / mean(row["bleu"] for row in control)
            first = timed[0] if timed else None
            measured = f"{first['measured_speedup']:.2f}x" if first and first["measured_speedup"] else "–"
            lines.append([
                f"{ratio:g}x", NAMES[strategy], f"{len(found[0]['kept_layers'])}/{found[0]['num_layers']}",
                f"{untrained['bleu']:.1f}" if untrained else "–", bleu(found), f"{share:.1%}", measured,
                *(f"{row['total_tokens_per_second']:.0f}" if row else "–" for row in timed),
            ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(rows: Rows, file: Path) -> None:
    """Quality against speedup: measured where it is, else predicted."""
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    control = mean(row["bleu"] for row in rows.seeds("full", 1.0))
    axes.axhline(control, color="grey", linestyle="--", linewidth=1)
    axes.annotate("full, fine-tuned alike", (1.0, control), xytext=(0, 4), textcoords="offset points", color="grey")
    measured = any(row.get("measured_speedup") for row in rows.speed.values())
    for strategy, colour in COLOURS.items():
        points = defaultdict(list)
        for ratio in RATIOS:
            timed = rows.speed.get((strategy, ratio, 1))
            for row in rows.seeds(strategy, ratio):
                points[timed["measured_speedup"] if timed else row["predicted_speedup"]].append(row["bleu"])
        xs = sorted(points)
        axes.plot(xs, [mean(points[x]) for x in xs], color=colour, label=NAMES[strategy], marker="o")
        axes.scatter([x for x in xs for _ in points[x]], [y for x in xs for y in points[x]], color=colour, s=12, alpha=0.6)
    axes.set_xlabel(f"{'measured' if measured else 'predicted'} decode speedup, batch 1")
    axes.set_ylabel("BLEU, test_2016_flickr de-en")
    axes.legend(frameon=False)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    for suffix in (".png", ".svg"):
        figure.savefig(file.with_suffix(suffix), dpi=150, metadata={"Date": None} if suffix == ".svg" else None)


def verdicts(rows: Rows) -> list[str]:
    """The paper's claims, one line each, in words that the numbers choose."""
    lines = []
    for ratio in RATIOS:
        unified = rows.tuned("unified", ratio)
        for strategy in ("top_skip", "bottom_skip"):
            other = rows.tuned(strategy, ratio)
            if unified is None or other is None:
                continue
            d = rows.difference(unified, other)
            word = "**held**" if d["delta_low"] > 0 else "**did not hold**" if d["delta_high"] < 0 else "**undecided**"
            lines.append(
                f"- {ratio:g}x, unified keeps more than {NAMES[strategy]}: {word}. {unified['bleu']:.1f} against {other['bleu']:.1f}, "
                f"a difference of {d['delta']:+.1f} ({d['delta_low']:+.1f} to {d['delta_high']:+.1f}), seed 1."
            )
        pairs = [(rows.tuned("unified", ratio, s), rows.tuned("top_skip", ratio, s)) for s in (2, 3)]
        again = [f"{u['bleu'] - t['bleu']:+.1f}" for u, t in pairs if u and t]
        if again:
            lines.append(f"  Against top skip with seeds 2 and 3: {', '.join(again)}.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/multi30k"))
    args = parser.parse_args()
    rows = Rows(args.results)
    plot(rows, args.results / "quality.png")
    body = table(rows)
    write_whole(args.results / "table4.md", body + "\n")
    page = (args.results / "page.json").read_text("utf-8") if (args.results / "page.json").exists() else "{}"
    facts = {"table": body, "verdicts": "\n".join(verdicts(rows)), "provenance": provenance(list(rows.quality.values()))}
    print(json.dumps({"rows": len(rows.quality), "page": len(page)}))
    print("\n\n".join(facts.values()))


if __name__ == "__main__":
    main()
