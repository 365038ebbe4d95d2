"""Write the page, the tables and the plot of the Multi30k reproduction from its rows and texts.

    python recipes/multi30k/report.py --results results/multi30k

Quality is judged on test_2016_flickr and test_2017_flickr together (`both`). To compute everything
again from the committed hypotheses, remove comparisons.json and add --data PATH/multi30k for the
references.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from rows import ADAPTER, Rows
from tables import (
    BASELINES,
    METHODS,
    NAMES,
    RATIOS,
    depth,
    interval,
    methods,
    summary,
    table4,
    without_training,
)

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import plots
from ulskip_cli.report.tables import markdown_table, provenance


def plot(rows: Rows, file: Path) -> None:
    """Plot quality over the layers of a decode step: one dot per seed, and a line through the
    means.
    """
    with plots.applied():
        plots.save_figure(drawn(rows), file)


def drawn(rows: Rows) -> Figure:
    """Return the figure of `plot`: a dashed line for the better full model, then the strategies
    that were fine-tuned, then unified with adapters, also dashed.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    (name, best), grey = rows.better, plots.strategy_colour("full")
    axes.axhline(best, color=grey, linestyle="--", linewidth=1)
    full_depth = next(iter(rows.points.values())).row.num_layers
    axes.plot([full_depth], [best], "D", color=grey, markersize=5)
    label = (
        "full model, fine-tuned with the same budget"
        if name == "control"
        else "full model, not fine-tuned"
    )
    plots.annotate(axes, label, (full_depth, best), (6, 5), fontsize=9)
    adapters = [("unified", *key) for key in METHODS if key[0] == ADAPTER]
    for strategy, prefix, variant in (
        *((name, "", "") for name in ("unified", *BASELINES)),
        *adapters,
    ):
        colour = plots.strategy_colour(strategy)
        xs: list[float] = []
        ys: list[float] = []
        for ratio in RATIOS:
            found = rows.seeds(strategy, ratio, prefix, variant)
            if not found:
                continue
            x = depth(found)
            axes.scatter(
                [x] * len(found), [point.bleu for point in found], color=colour, s=10, alpha=0.6
            )
            xs, ys = [*xs, x], [*ys, mean(point.bleu for point in found)]
        if not xs:
            continue
        axes.plot(
            xs,
            ys,
            color=colour,
            linestyle="--" if prefix else "-",
            marker="o",
            markersize=5,
            linewidth=1.8,
        )
        below = strategy == "skip_decode"  # right of its last point lies another line
        alignment: dict[str, Any] = {"ha": "center", "va": "top"} if below else {"va": "center"}
        name = ", ".join(filter(None, [NAMES[strategy], METHODS[prefix, variant].split(",")[0]]))
        plots.annotate(
            axes, name, (xs[-1], ys[-1]), (0, -8) if below else (8, 0), fontsize=10, **alignment
        )
    axes.set_title(
        "Multi30k, German to English; the points of a line\n"
        "have the targets 2x, 3x and 6x; a small dot is one seed"
    )
    axes.set_xlabel(f"layers of a decode step, of {full_depth}")
    axes.set_ylabel("BLEU on both test sets")
    axes.set_xlim(full_depth + 0.5, -0.5)  # fewer layers to the right
    axes.set_ylim(top=best + 2)
    return figure


def claims(rows: Rows) -> str:
    """Judge the paper's claim at every ratio, in a table and with figures: the interval of seed 1
    on both test sets excludes zero, and all seeds agree.
    """
    lines, verdicts = [], defaultdict[str, dict[float, str]](dict)
    for ratio in RATIOS:
        unified = rows.tuned("unified", ratio)
        for strategy in BASELINES:
            other = rows.tuned(strategy, ratio)
            difference = rows.difference(unified, other) if unified and other else None
            if not (unified and other and difference):
                continue
            seeds = [
                (rows.tuned("unified", ratio, seed), rows.tuned(strategy, ratio, seed))
                for seed in (2, 3)
            ]
            other_seeds = [first.bleu - second.bleu for first, second in seeds if first and second]
            verdict = "undecided"
            if difference["delta_low"] > 0 and min(other_seeds, default=1) > 0:
                verdict = "yes"
            elif difference["delta_high"] < 0 and max(other_seeds, default=-1) < 0:
                verdict = "no"
            verdicts[strategy][ratio] = verdict
            again = ", ".join(f"{delta:+.1f}" for delta in other_seeds)
            lines.append(
                f"- {ratio:g}x, unified against {NAMES[strategy]}: **{verdict}**. BLEU"
                f" {unified.bleu:.1f} against {other.bleu:.1f}: {interval(difference)}."
                + (f" Seeds 2 and 3: {again}." if again else "")
            )
    name, best = rows.better
    kept = [
        f"{rows.bleu('unified', ratio) / best:.1%} at {ratio:g}x"
        for ratio in RATIOS
        if rows.seeds("unified", ratio)
    ]
    if kept:
        lines.append(
            f"- Unified keeps {', '.join(kept)} of the BLEU of the {name}, the better full model"
            f" ({best:.1f})."
        )
    full = rows.tuned("unified", RATIOS[0]).row.num_layers
    heads = ["more BLEU than", *(f"{full // ratio:g} of {full} layers" for ratio in RATIOS)]
    cells = [
        [NAMES[strategy], *(words.get(ratio, "–") for ratio in RATIOS)]
        for strategy, words in verdicts.items()
    ]
    return "\n\n".join([markdown_table(heads, cells), "\n".join(lines)])


def section(title: str, *parts: str) -> list[str]:
    """Make a heading with its parts; empty if the last part is empty."""
    return [f"## {title}", *parts] if parts[-1] else []


def page(rows: Rows) -> str:
    sample = next(iter(rows.points.values())).row
    every = [row for point in rows.points.values() for row in point.rows]
    versions = sorted({row.environment.version.split()[0] for row in every})
    full = ", ".join(f"{name} {bleu:.1f}" for name, bleu in rows.full_models.items())
    parts = [
        "# Multi30k, German to English: does the claim hold?",
        (
            f"An archive: ulskip {', '.join(versions)} trained and measured these models. They are"
            " not made again, because later versions train no random weights."
        ),
        (
            "The paper's claim: at the same number of kept layers, unified skipping keeps more"
            f" quality than other strategies. We trained one base of {sample.num_layers} layers"
            " from random weights at full depth. Then we fine-tuned it under each schedule, and at"
            " full depth as the control, with the same budget (half an epoch). All checkpoints"
            f" decode test_2016_flickr and test_2017_flickr greedily, {sample.num_examples:,}"
            " sentences each. `recipes/multi30k/reproduce.py` at commit 9ef27aeb83 made the rows."
            " The text and the weights are not part of this repository (CC BY-NC-SA 4.0);"
            " `answers.jsonl.gz` has the hypotheses."
        ),
        (
            "Both: BLEU of the sentences of both test sets together. All claims and comparisons"
            " are judged on it, by sacrebleu's paired bootstrap with 95% intervals of seed 1; a"
            " claim is undecided if another seed contradicts it. BLEU of the full models on both:"
            f" {full}. Claims and differences are of seed 1, tables have means of the seeds. A"
            " share without a name is of the base."
        ),
        table4(rows),
        (
            "Before: the base without fine-tuning. Layers: kept layers of a decode step, a mean if"
            " they vary."
        ),
        "![BLEU against the layers of a decode step](quality.png)",
        *section("The claims", claims(rows)),
        *section(
            "Fine-tuning, patches and adapters",
            "Patches are computed in closed form, without training. An adapter corrects the views"
            " of the base, which stays unchanged. Its training has two epochs in batches of 64,"
            " with cross-entropy plus the divergence from the base. Fine-tuning for two epochs has"
            " the same batches and the same loss. It trains every weight in bfloat16 with Muon and"
            " dropout, the adapter its patches and LoRA of full rank, in float32. Both learn the"
            " references; with answers of beams, the base's own answers from 4 beams too. Minus"
            " fine-tuned for two epochs: the difference of seed 1 with its interval. Both at 1x:"
            " BLEU of the same weights with all layers.",
            methods(rows),
        ),
        *section(
            "Without fine-tuning",
            "The base without any training for skipping. Block influence and search measured the"
            " layers on the validation set and kept the best ones.",
            without_training(rows),
        ),
        "## Where the numbers come from",
        repetitions(rows),
        # a row of each version of the code
        provenance(list({row.environment.git_commit: row for row in every}.values())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def repetitions(rows: Rows) -> str:
    """Say how many rows were made again, and how many of them have the same answers."""
    again = rows.comparisons["again"]
    repeated = [row for row in ResultsFolder(rows.folder).records() if row.id in again]
    if not repeated:
        return ""
    versions = dict.fromkeys(row.environment.version for row in repeated)
    num_same = sum(again[row.id] for row in repeated)
    return (
        f"{len(repeated)} rows were made again with their trainings by ulskip"
        f" {', '.join(versions)}: the answers of {num_same} are the same."
    )


def write(folder: Path, data: Path | None = None) -> None:
    """Write the page, its plot, both tables that other pages show, and what is computed from texts,
    so that the next call needs none.
    """
    rows = Rows(folder, data)
    if not rows.full_models:
        raise SystemExit(
            f"expected the base or the control on both test sets in {folder}, got neither"
        )
    plot(rows, folder / "quality")
    write_atomic(folder / "table4.md", table4(rows) + "\n")
    write_atomic(folder / "summary.md", summary(rows) + "\n")
    write_atomic(folder / "README.md", page(rows))
    rows.save()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results/multi30k"))
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of Multi30k; required if neither generations nor comparisons exist",
    )
    args = parser.parse_args()
    write(args.results, args.data)
    print(f"written to {args.results}/README.md")


if __name__ == "__main__":
    main()
