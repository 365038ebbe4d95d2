"""Tables of the Multi30k reproduction in Markdown."""

from statistics import mean

from rows import ADAPTER, BASE, PATCHED, Point, Row, Rows

from ulskip_cli.report.tables import markdown_table

NAMES = {
    "full": "full (control)",
    "unified": "unified",
    "top_skip": "top skip",
    "bottom_skip": "bottom skip",
    "early_exit": "early exit",
    "skip_decode": "SkipDecode",
    "block_influence": "block influence",
    "search": "search",
}
BASELINES = ("early_exit", "skip_decode", "top_skip", "bottom_skip", "search")
MEASURED_FIRST = ("block_influence", "search")  # strategies that are calibrated
RATIOS = (2.0, 3.0, 6.0)
TEST_HEADS = ["2016", "2017", "both"]
SHARE_HEADS = ["of control", "of base"]
METHODS = {  # names in tables by the beginning of a checkpoint's name and its variant
    ("", ""): "",
    ("", "-reference"): "fine-tuned for two epochs",
    (ADAPTER, "-reference"): "adapter, two epochs",
    (ADAPTER, "-beams"): "adapter, two epochs with answers of beams",
}


def spread(values: list[float]) -> str:
    """Format the mean over seeds, and their range if there are several."""
    ends = (
        f" ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)" if len(values) > 1 else ""
    )
    return f"{mean(values):.1f}{ends}"


def scores(points: list[Point]) -> list[str]:
    """Format BLEU on each test set, a mean over seeds, and on both together with the range of the
    seeds.
    """
    each = [
        mean(row.value("bleu") for row in rows)
        for rows in zip(*(point.rows for point in points), strict=True)
    ]
    return [*(f"{value:.1f}" for value in each), spread([point.bleu for point in points])]


def shares(rows: Rows, bleu: float) -> list[str]:
    """Format the shares of the control's and of the base's BLEU."""
    full = rows.full_models
    return [f"{bleu / full[name]:.1%}" if name in full else "–" for name in ("control", "base")]


def interval(difference: Row | None) -> str:
    if difference is None:
        return "–"
    return (
        f"{difference['delta']:+.1f} ({difference['delta_low']:+.1f} to"
        f" {difference['delta_high']:+.1f})"
    )


def depth(points: list[Point]) -> float:
    """Return the layers of a decode step; if the depth varies, its mean over the evaluated
    answers, with one decimal.
    """
    rows = [row for point in points for row in point.rows]
    means = [row.evaluated_mean_kept_layers for row in rows if row.evaluated_mean_kept_layers]
    return round(mean(means), 1) if means else len(rows[0].kept_layers)


def varying(row: Row) -> str:
    """Format the mean number of layers if it differs from the target."""
    mean = row.evaluated_mean_kept_layers
    return (
        f" ({mean:.1f} layers)" if mean and f"{mean:.1f}" != f"{row.target_kept_layers:.1f}" else ""
    )


def table4(rows: Rows) -> str:
    """Tabulate BLEU of every strategy at every ratio after and before fine-tuning, like Table 4 of
    the paper.
    """
    lines = []
    for ratio in (1.0, *RATIOS):
        for strategy in ("full",) if ratio == 1 else (*BASELINES, "unified"):
            tuned, untrained = rows.seeds(strategy, ratio), rows.points.get((BASE, strategy, ratio))
            if not tuned:
                continue
            layers = f"{depth(tuned)}/{tuned[0].row.num_layers}"
            before = f"{untrained.bleu:.1f}" if untrained else "–"
            quality = [before, *scores(tuned), *shares(rows, rows.bleu(strategy, ratio))]
            lines.append([f"{ratio:g}x", NAMES[strategy], layers, *quality])
    heads = ["target", "approach", "layers", "both before", *TEST_HEADS, *SHARE_HEADS]
    return markdown_table(heads, lines, 2)


def summary(rows: Rows) -> str:
    """Tabulate pooled BLEU and its share of the better full model's: a line for each full model,
    then one for each training method and strategy, and a column for each ratio.
    """
    _, best = rows.better

    def cell(seeds: list[Point]) -> str:
        bleu = mean(point.bleu for point in seeds) if seeds else 0.0
        return f"{bleu:.1f} ({bleu / best:.1%})" if seeds else "–"

    full = {"control": "control, all layers", "base": "base, all layers"}
    lines = [
        [full[name], *[f"{bleu:.1f} ({bleu / best:.1%})"] * len(RATIOS)]
        for name, bleu in rows.full_models.items()
    ]
    for (prefix, variant), name in METHODS.items():
        for strategy in ("unified", *BASELINES):
            seeds_by_ratio = [rows.seeds(strategy, ratio, prefix, variant) for ratio in RATIOS]
            if any(seeds_by_ratio):
                label = ", ".join(filter(None, [NAMES[strategy], name]))
                lines.append([label, *map(cell, seeds_by_ratio)])
    total = next(iter(rows.points.values())).row.num_layers
    heads = [f"{total / ratio:g} of {total} layers" for ratio in RATIOS]
    return markdown_table(["BLEU", *heads], lines)


def methods(rows: Rows) -> str:
    """Compare fine-tuning, patches and adapters under the same schedules: a line for each ratio and
    method, with the difference to fine-tuning for two epochs, and BLEU with all layers.
    """
    base, lines = rows.points.get((BASE, "full", 1.0)), []
    for ratio in (1.0, *RATIOS):
        strategy = "unified" if ratio > 1 else "full"
        two_epochs = rows.tuned(strategy, ratio, variant="-reference")
        untrained = {"base": BASE, "patches alone": PATCHED}  # checkpoints without seeds
        points_by_method = {
            name: [rows.points.get((checkpoint, strategy, ratio))]
            for name, checkpoint in untrained.items()
        }
        for key, name in METHODS.items():
            method = name or "fine-tuned for half an epoch"
            points_by_method[method] = rows.seeds(strategy, ratio, *key)
        for name, found in points_by_method.items():
            points = [point for point in found if point]
            if not points:
                continue
            # Patches and adapters leave the base unchanged, so at full depth they are the base.
            full = [rows.points.get((point.checkpoint, "full", 1.0), base) for point in points]
            at_1x = {point.checkpoint: point.bleu for point in full if point}
            is_compared = two_epochs not in (None, points[0])
            minus = rows.difference(points[0], two_epochs) if is_compared else None
            lines.append(
                [
                    f"{ratio:g}x",
                    name,
                    *scores(points),
                    shares(rows, mean(point.bleu for point in points))[1],
                    interval(minus),
                    spread(list(at_1x.values())) if at_1x else "–",
                ]
            )
    heads = [
        "target",
        "method",
        *TEST_HEADS,
        "of base",
        "minus fine-tuned for two epochs",
        "both at 1x",
    ]
    return markdown_table(heads, lines, 2) if lines else ""


def without_training(rows: Rows) -> str:
    """Tabulate BLEU on each test set and decode loss of every strategy on the base, and the layers
    that calibrated strategies found.
    """
    lines = []
    for ratio in RATIOS:
        for strategy in ("unified", *BASELINES, "block_influence"):
            point = rows.points.get((BASE, strategy, ratio))
            if not point:
                continue
            kept = ", ".join(map(str, point.row.kept_layers)) if strategy in MEASURED_FIRST else "–"
            losses = [f"{row.decode_loss:.2f}{varying(row)}" for row in point.rows]
            lines.append([f"{ratio:g}x", NAMES[strategy], *scores([point]), *losses, kept])
    heads = [
        "target",
        "approach",
        *TEST_HEADS,
        "decode loss 2016",
        "decode loss 2017",
        "found layers",
    ]
    return markdown_table(heads, lines, 2) if lines else ""
