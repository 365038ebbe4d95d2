"""Write the page, the table and the plot of the Multi30k reproduction from its rows and comparisons.

    python recipes/multi30k/report.py --results results/multi30k

A comparison needs the generated texts, which are not committed; comparisons.json stores its result.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from sacrebleu.metrics.bleu import BLEU

from ulskip_cli.core.files import read_jsonl, write_atomic
from ulskip_cli.report import plot_style
from ulskip_cli.report.columns import paired_tokens_per_second
from ulskip_cli.report.tables import provenance
from ulskip_cli.tasks.metrics.scores import Answers
from ulskip_cli.tasks.metrics.translation import compare

NAMES = {"full": "full (control)", "unified": "unified", "top_skip": "top skip", "bottom_skip": "bottom skip",
         "early_exit": "early exit", "skip_decode": "SkipDecode", "block_influence": "block influence", "search": "search",
}  # fmt: skip
BASELINES = ("early_exit", "skip_decode", "top_skip", "bottom_skip", "search")
MEASURED_FIRST = ("block_influence", "search")
RATIOS = (2.0, 3.0, 6.0)
NAMED_BELOW = ("bottom_skip", "skip_decode")  # in the plot: right of their last point lies another line
COMPARISONS = "comparisons.json"
Row = dict[str, Any]


class Rows:
    """Rows of quality by checkpoint and schedule, rows of speed by schedule and batch size, and comparisons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.comparisons: dict[str, Row] = kept_comparisons(folder)
        self.quality: dict[tuple[str, str, float], Row] = {}
        self.speed: dict[tuple[str, float, int], Row] = {}
        for row in {row["id"]: row for row in read_jsonl(folder / "runs.jsonl")}.values():
            target = row["target_speedup"]
            if row["config"]["speed"]["enabled"]:
                if row["strategy"] == "full" and Path(row["model"]).name != "full-1x-s1":
                    continue  # the baselines of the pairs
                self.speed[row["strategy"], target, row["batch_size"]] = row
            else:
                self.quality[Path(row["model"]).name, row["strategy"], target] = row

    def tuned(self, strategy: str, ratio: float, seed: int = 1) -> Row | None:
        if strategy == "early_exit":  # one training for all ratios
            return self.quality.get((f"early_exit-2+3+6x-s{seed}", strategy, ratio))
        return self.quality.get((f"{strategy}-{ratio:g}x-s{seed}", strategy, ratio))

    def seeds(self, strategy: str, ratio: float) -> list[Row]:
        return [row for seed in range(1, 10) if (row := self.tuned(strategy, ratio, seed))]

    def bleu(self, strategy: str, ratio: float) -> float:
        return mean(row["bleu"] for row in self.seeds(strategy, ratio))

    def difference(self, one: Row, other: Row) -> Row:
        """Compute BLEU of `one` minus BLEU of `other`, with sacrebleu's paired bootstrap."""
        ids = f"{one['id']} {other['id']}"
        if ids not in self.comparisons:
            self.comparisons[ids] = self.compare(one, other)
        return self.comparisons[ids]

    def compare(self, one: Row, other: Row) -> Row:
        own, others = (read_jsonl(self.folder / "generations" / f"{row['id']}.jsonl") for row in (one, other))
        hypotheses, rest = ([text["hypothesis"] for text in texts] for texts in (own, others))
        references, sources = ([text[key] for text in own] for key in ("reference", "source"))
        return compare(BLEU(), Answers(hypotheses, references, sources, rest))


def kept_comparisons(folder: Path) -> dict[str, Row]:
    file = folder / COMPARISONS
    return dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}


def markdown(heads: list[str], lines: list[list[str]], words: int = 2) -> str:
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def spread(rows: list[Row]) -> str:
    values = [row["bleu"] for row in rows]
    ends = f" ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)" if len(values) > 1 else ""
    return f"{mean(values):.1f}{ends}"


def depth(rows: list[Row]) -> str:
    """Format the layers of a decode step; if the depth varies, its mean over the evaluated answers."""
    means = [row["evaluated_mean_kept_layers"] for row in rows if row.get("evaluated_mean_kept_layers")]
    return f"{mean(means):.1f}" if means else str(len(rows[0]["kept_layers"]))


def clock(row: Row) -> str:
    """Format a measured speedup with its interval."""
    return f"{row['measured_speedup']:.2f} ({row['measured_speedup_low']:.2f} to {row['measured_speedup_high']:.2f})"


def varying(row: Row) -> str:
    """Format the mean number of layers if it differs from the target."""
    mean = row.get("evaluated_mean_kept_layers")
    return f" ({mean:.1f} layers)" if mean and f"{mean:.1f}" != f"{row['target_kept_layers']:.1f}" else ""


def table4(rows: Rows) -> str:
    batches = sorted({batch for _, _, batch in rows.speed})
    control, lines = rows.bleu("full", 1.0), []
    for ratio in (1.0, *RATIOS):
        for strategy in ("full",) if ratio == 1 else (*BASELINES, "unified"):
            found, untrained = rows.seeds(strategy, ratio), rows.quality.get(("base", strategy, ratio))
            if not found:
                continue
            timed = [rows.speed.get((strategy, ratio, batch)) for batch in batches]
            speeds = [f"{paired_tokens_per_second(row):.0f}" if row else "–" for row in timed]
            share = rows.bleu(strategy, ratio) / control
            layers = f"{depth(found)}/{found[0]['num_layers']}"
            before = f"{untrained['bleu']:.1f}" if untrained else "–"
            measured = clock(timed[0]) if timed and timed[0] else "–"
            lines.append([f"{ratio:g}x", NAMES[strategy], layers, before, spread(found), f"{share:.1%}", measured, *speeds])
    speeds = [f"tok/s, batch {batch}" for batch in batches]
    return markdown(["target", "approach", "layers", "BLEU before", "BLEU", "of control", "measured", *speeds], lines)


def summary(rows: Rows) -> str:
    """Tabulate BLEU after fine-tuning and its share of the control's, one line per strategy."""
    control = rows.bleu("full", 1.0)

    def cell(strategy: str, ratio: float) -> str:
        if not rows.seeds(strategy, ratio):
            return "–"
        return f"{rows.bleu(strategy, ratio):.1f} ({rows.bleu(strategy, ratio) / control:.1%})"

    lines = [[NAMES[name], *(cell(name, ratio) for ratio in RATIOS)] for name in ("unified", *BASELINES)]
    full = [NAMES["full"], *[f"{control:.1f} (100.0%)"] * len(RATIOS)]
    return markdown(["strategy", *(f"BLEU at {ratio:g}x" for ratio in RATIOS)], [full, *lines], 1)


def plot(rows: Rows, file: Path) -> None:
    """Plot quality over measured (else predicted) speedup: one dot per seed, and a line through the means."""
    with plot_style.applied():
        plot_style.save_figure(drawn(rows), file)


def drawn(rows: Rows) -> Figure:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    control, grey = rows.bleu("full", 1.0), plot_style.strategy_colour("full")
    axes.axhline(control, color=grey, linestyle="--", linewidth=1)
    axes.plot([1], [control], "D", color=grey, markersize=5)
    plot_style.annotate(axes, "full model, fine-tuned with the same budget", (1, control), (6, 5), fontsize=9)
    for strategy in ("unified", *BASELINES):
        xs, ys, colour = [], [], plot_style.strategy_colour(strategy)
        for ratio in RATIOS:
            found, timed = rows.seeds(strategy, ratio), rows.speed.get((strategy, ratio, 1))
            if not found:
                continue
            x = timed["measured_speedup"] if timed else found[0]["predicted_speedup"]
            axes.scatter([x] * len(found), [row["bleu"] for row in found], color=colour, s=10, alpha=0.6)
            xs, ys = [*xs, x], [*ys, rows.bleu(strategy, ratio)]
        if not xs:
            continue
        axes.plot(xs, ys, color=colour, marker="o", markersize=5, linewidth=1.8)
        place: dict[str, Any] = {"ha": "center", "va": "top"} if strategy in NAMED_BELOW else {"va": "center"}
        offset = (0, -8) if strategy in NAMED_BELOW else (8, 0)
        plot_style.annotate(axes, NAMES[strategy], (xs[-1], ys[-1]), offset, fontsize=10, **place)
    axes.set_title(
        "Multi30k, German to English, batch size 1; the points of a line\n"
        "have the targets 2x, 3x and 6x; a small dot is one seed"
    )
    axes.set_xlabel(f"{'measured' if rows.speed else 'predicted'} speedup over the full model")
    axes.set_ylabel("BLEU")
    axes.set_xlim(0.9, axes.get_xlim()[1] + 0.3)
    axes.set_ylim(top=control + 2)
    axes.xaxis.set_major_formatter("{x:g}x")
    return figure


def claims(rows: Rows) -> str:
    """Judge the paper's claim at every ratio by the confidence interval of the difference."""
    lines = []
    for ratio in RATIOS:
        unified = rows.tuned("unified", ratio)
        for strategy in BASELINES:
            other = rows.tuned(strategy, ratio)
            if not unified or not other:
                continue
            d = rows.difference(unified, other)
            word = "holds" if d["delta_low"] > 0 else "does not hold" if d["delta_high"] < 0 else "is undecided"
            seeds = [(rows.tuned("unified", ratio, s), rows.tuned(strategy, ratio, s)) for s in (2, 3)]
            again = ", ".join(f"{u['bleu'] - t['bleu']:+.1f}" for u, t in seeds if u and t)
            lines.append(
                f"- {ratio:g}x, unified against {NAMES[strategy]}: the claim **{word}**. BLEU {unified['bleu']:.1f} against "
                f"{other['bleu']:.1f}: {d['delta']:+.1f} ({d['delta_low']:+.1f} to {d['delta_high']:+.1f})."
                + (f" Seeds 2 and 3: {again}." if again else "")
            )
    kept = [f"{rows.bleu('unified', r) / rows.bleu('full', 1.0):.1%} at {r:g}x" for r in RATIOS if rows.seeds("unified", r)]
    return "\n".join([*lines, f"- Unified keeps {', '.join(kept)} of the control's BLEU.", f"- {most_kept(rows)}"])


def most_kept(rows: Rows) -> str:
    """Name the best checkpoint at every ratio, with all training options."""
    told = []
    for ratio in RATIOS:
        tuned = [(row["bleu"], name) for (name, _, target), row in rows.quality.items() if target == ratio and name != "base"]
        if tuned:
            bleu, name = max(tuned)
            told.append(f"{bleu / rows.bleu('full', 1.0):.1%} at {ratio:g}x (`{name}`)")
    return f"The best checkpoints keep {', '.join(told)}."


def variants(rows: Rows) -> str:
    """Compare each training option with plain fine-tuning under the same schedule, seed 1."""
    lines = []
    for (weights, strategy, ratio), row in rows.quality.items():
        plain = rows.tuned(strategy, ratio)
        if plain is None or weights == "base" or Path(plain["model"]).name == weights or weights.endswith(("s2", "s3")):
            continue
        d = rows.difference(row, plain)
        shown = f"{d['delta']:+.1f} ({d['delta_low']:+.1f} to {d['delta_high']:+.1f})"
        share = f"{row['bleu'] / rows.bleu('full', 1.0):.1%}"
        lines.append([f"`{weights}`", f"{ratio:g}x", f"{row['bleu']:.1f}", shown, share])
    heads = ["checkpoint", "at", "BLEU", "minus plain", "of control"]
    return markdown(heads, sorted(lines, key=lambda line: (line[0], line[1]))) if lines else ""


def two_layers(rows: Rows, folder: Path) -> str:
    """Report the ranking of all pairs of layers on the base, which explains the result at 6x."""
    if not (folder / "pairs.json").exists():
        return ""
    ranked = json.loads((folder / "pairs.json").read_text("utf-8"))["pairs"]
    place = {tuple(row["kept_layers"]): (i, row["validation_loss"]) for i, row in enumerate(ranked, start=1)}
    depth = 1 + max(layer for pair in place for layer in pair)
    named = {"unified (the ends)": (0, depth - 1), "top skip": (0, 1), "bottom skip": (depth - 2, depth - 1)}
    best = ", ".join(
        f"{row['kept_layers'][0]} and {row['kept_layers'][1]} ({row['validation_loss']:.2f})" for row in ranked[:3]
    )
    others = "; ".join(f"{name} {place[pair][1]:.2f}, rank {place[pair][0]}" for name, pair in named.items())
    without_first = next(row for row in ranked if 0 not in row["kept_layers"])
    found = rows.tuned("search", 6.0)
    layers = " and ".join(map(str, found["kept_layers"])) if found else ""
    after = f" Fine-tuned with the same budget, layers {layers} reach {found['bleu']:.1f} BLEU." if found else ""
    return (
        f"`pairs.json` has the validation loss of the base, before any fine-tuning, with two layers in decoding. Of all "
        f"{len(ranked)} pairs, the best are {best}. For comparison: {others}. The best pair without layer 0 has "
        f"{without_first['validation_loss']:.2f}, so the first layer is necessary. Its best partner is in the upper middle. "
        f"The last layer, which unified always keeps, was trained to read the output of the layer before it.{after}"
    )


def without_training(rows: Rows) -> str:
    """Tabulate BLEU and decode loss of every strategy on the base."""
    lines = []
    for strategy in ("unified", *BASELINES, "block_influence"):
        found = [rows.quality.get(("base", strategy, ratio)) for ratio in RATIOS]
        cells = [f"{row['bleu']:.1f} / {row['decode_loss']:.2f}{varying(row)}" if row else "–" for row in found]
        kept = found[-1]["kept_layers"] if strategy in MEASURED_FIRST and found[-1] else None
        if any(found):
            lines.append([NAMES[strategy], *cells, " and ".join(map(str, kept)) if kept else "–"])
    heads = ["approach", *(f"BLEU / decode loss at {ratio:g}x" for ratio in RATIOS), "kept at 6x"]
    return markdown(heads, lines, 1) if lines else ""


def section(title: str, *parts: str) -> list[str]:
    """Make a heading with its parts; empty if the last part is empty."""
    return [f"## {title}", *parts] if parts[-1] else []


def page(rows: Rows, folder: Path) -> str:
    sample = next(iter(rows.quality.values()))
    every = [*rows.quality.values(), *rows.speed.values()]
    parts = [
        "# Multi30k, German to English: does the claim hold?",
        f"The paper's claim: at the same number of kept layers, unified skipping keeps more quality than other strategies. "
        f"We trained one base of {sample['num_layers']} layers from random weights at full depth. Then we fine-tuned it under "
        f"each schedule, and at full depth as the control, with the same budget (half an epoch). All checkpoints decode the "
        f"{sample['num_examples']} sentences of test_2016_flickr greedily. `recipes/multi30k/reproduce.py` repeats the "
        f"experiment. The text and the weights are not part of this repository (CC BY-NC-SA 4.0).",
        table4(rows),
        "BLEU before: the base without fine-tuning. Layers: kept layers of a decode step, a mean if they vary. "
        "Measured: decode speedup over the full model at batch size 1 with the weights of seed 1, the median of timed pairs "
        "with its interval. Both sides of a pair decode the same number of tokens, but early exit stops at EOS. Tok/s: decoded "
        "tokens per second in these pairs.",
        "![BLEU against measured speedup](quality.png)",
        "## The claims",
        claims(rows),
        *section(
            "Without fine-tuning",
            "The base without any training for skipping. Block influence and search measured the layers on the validation set "
            "and kept the best ones.",
            without_training(rows),
        ),
        *section("The best two layers at 6x", two_layers(rows, folder)),
        *section(
            "Training options",
            "Each option alone, compared with plain fine-tuning for one ratio. A name with several ratios is one checkpoint "
            "that drew a ratio at every step. `long` has four times the budget and distillation.",
            variants(rows),
        ),
        "## Where the numbers come from",
        provenance(list({row["environment"]["git_commit"]: row for row in every}.values())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(folder: Path) -> None:
    rows = Rows(folder)
    plot(rows, folder / "quality")
    write_atomic(folder / "table4.md", table4(rows) + "\n")
    write_atomic(folder / "summary.md", summary(rows) + "\n")
    write_atomic(folder / "README.md", page(rows, folder))
    write_atomic(folder / COMPARISONS, json.dumps(rows.comparisons, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/multi30k"))
    args = parser.parse_args()
    write(args.results)
    print(f"written to {args.results}/README.md")


if __name__ == "__main__":
    main()
