"""Compare engines, formats of weights, skipped layers and drafts with one full model, in one table.

    python recipes/frontier/reproduce.py --data PATH --adapters runs/skip_adapters

The command compares for the embedded model on its sample, and for SmolLM2-135M on CNN/DM, with
trained adapters; without --data only the sample is measured. PATH holds cnn_dm/. Every point is
measured alone at each of --batch-sizes, on two cores that should be idle otherwise. --parts chooses
what is measured. If the recipe is interrupted, the same command resumes. The page goes to
results/frontier/README.md, and the table of what to use to use.md.
LLAMA_CPP_LIB_PATH names an own build of llama.cpp.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.config import group_choices
from ulskip_cli.core.correction import KINDS
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import QualityShare
from ulskip_cli.report import plots
from ulskip_cli.report.frontier import (
    DRAFTING,
    Frontier,
    choices,
    engine_of,
    frontiers,
    kind_of,
    name_of,
    speed_of,
)
from ulskip_cli.report.rows import collected, read_records
from ulskip_cli.report.tables import markdown, provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "frontier"
ENGINES = "torch,llama_cpp,llama_cpp_q8_0,llama_cpp_q4_0"
PARTS = ("sample", "cnn_dm")
MARKERS = "osD^vP*X"
SIDES = ((10, 6), (10, -6), (-10, 6), (-10, -6))  # of a text beside a point, in typographic points


def call(*arguments: str) -> None:
    print("ulskip", *arguments, flush=True)
    if code := invoke(list(arguments)):
        sys.exit(code)


def cnn_dm(data: Path, model: str, limit: int) -> list[str]:
    """Return the overrides of a run on CNN/DM; `model` is a preset, or a folder or hub id."""
    chosen = f"model={model}" if model in group_choices("model") else f"model.path={model}"
    task = [
        chosen,
        "task=cnn_dm",
        f"task.file={data}/cnn_dm/validation.jsonl.gz",
        "task.max_article_words=250",
    ]
    held_out = [
        f"calibration.task={{file: {data}/cnn_dm/train.jsonl.gz}}",
        "calibration.examples=64",
    ]
    lengths = ["task.max_new_tokens=96", "speed.new_tokens=96"]
    return [*task, *held_out, *lengths, f"limit={limit}"]


def measure(args: argparse.Namespace, part: str) -> None:
    """Measure a part: the embedded model at several depths, or another with one skipped block and
    corrections.
    """
    common = ["experiment=frontier", f"name={NAME}"]
    engines, batches = f"engine={args.engines}", f"batch_size={args.batch_sizes}"
    if part == "sample":
        call("sweep", *common, engines, batches)
    else:
        common += cnn_dm(args.data, args.model, args.limit)
        measure_corrections(args, common)
    lookups = ["decoding=prompt_lookup", "decoding.draft_tokens=auto", "batch_size=1"]
    call("sweep", *common, engines, "strategy=full", "ratio=2", *lookups)


def measure_corrections(args: argparse.Namespace, common: list[str]) -> None:
    """Measure the full model, and one skipped block with patches and with trained adapters."""
    engines, batches = f"engine={args.engines}", f"batch_size={args.batch_sizes}"
    block = ["strategy=one_block", f"ratio={args.ratios}", "ratio_basis=cost"]
    call("sweep", *common, engines, batches, "strategy=full", "ratio=2")
    folded = ["correction=patch", "correction.kind=folded"]
    call("sweep", *common, engines, batches, *block, *folded)
    call("sweep", *common, "engine=torch", batches, *block, "correction=patch")
    for file in sorted(args.adapters.glob("adapter-*/adapter.json")) if args.adapters else ():
        kind, adapted = adapter(file.parent)
        runs_in = "engine=torch" if KINDS[kind].takes_time else engines
        call("sweep", *common, runs_in, batches, *adapted)


def adapter(folder: Path) -> tuple[str, list[str]]:
    """Return the kind of an adapter, and the overrides of a run with it."""
    record = json.loads((folder / "adapter.json").read_text("utf-8"))
    layers = str(record["kept_sets"][0]).replace(" ", "")
    custom = ["strategy=custom", f"strategy.layers={layers}", "ratio=2"]
    return record["kind"], [*custom, "correction=adapter", f"correction.path={folder}"]


def plot(frontier: Frontier) -> "Figure":
    """Draw quality against speedup in a panel for each batch size: a colour and a marker for each
    engine and format, and one for drafts, with the numbers of kept layers.
    """
    looks = {name: i for i, name in enumerate(collected(frontier.points, series_name))}
    figure, panels = plots.panels(len(frontier.batch_sizes), 7.6, 4.8)
    for axes, batch_size in zip(panels, frontier.batch_sizes, strict=True):
        points = [point for point in frontier.points if point.record.batch_size == batch_size]
        at = {point.record.id: (speed_of(point), 100 * point.share) for point in points}
        plots.limit_to(axes, list(at.values()))
        plots.draw_front(axes, sorted(at[name] for name in at if name not in frontier.beaten))
        for label, members in collected(points, series_name).items():
            look = {
                "marker": MARKERS[looks[label] % len(MARKERS)],
                "color": f"C{looks[label] % 10}",
            }
            xs, ys = zip(*(at[point.record.id] for point in members), strict=True)
            axes.plot(xs, ys, linestyle="none", label=label, **look)
        layers = [(point.record.layers or "").partition("/")[0] for point in points]
        annotate_apart(axes, layers, [at[point.record.id] for point in points])
        baseline = f"{name_of(points[0].record)} at full depth, batch size {batch_size}"
        axes.set(
            xlabel=f"decode speedup over {baseline}",
            ylabel=f"{points[0].title}, % of the baseline",
        )
        axes.legend(title="numbers: kept layers", title_fontsize=8)
    return figure


def series_name(point: QualityShare) -> str:
    """Name the points of one colour."""
    return "drafts" if kind_of(point.record) == DRAFTING else engine_of(point.record)


def annotate_apart(
    axes: "Axes", texts: "Sequence[str]", points: "Sequence[tuple[float, float]]"
) -> None:
    """Write a small text beside each point, on the side that is farthest from other points and
    texts.
    """
    taken = axes.transData.transform(points) / axes.figure.dpi * 72
    for text, point, at in zip(texts, points, taken.copy(), strict=True):
        side = max(SIDES, key=lambda offset: np.hypot(*(taken - at - offset).T).min())
        plots.annotate(axes, text, point, side, ha="center", va="center", fontsize=7)
        taken = np.vstack([taken, at + side])


def page(found: list[Frontier], folder: Path) -> str:
    """Write a plot for each frontier and return the page."""
    parts = ["# What is best at which speed?"]
    parts.append(
        "Every point decodes the same prompts as the full model in torch, whose weights are not"
        " quantized, in pairs in one process, and answers the same examples. Patches are computed"
        " without training; adapters are trained (docs/adapters.md). With drafts the full model"
        " decides every token. `recipes/frontier/reproduce.py` writes this page."
    )
    for one in found:
        first = one.points[0].record
        name = f"frontier-{first.model}-{Path(first.dataset).name.partition('.')[0]}"
        with plots.applied():
            plots.save_figure(plot(one), folder / name)
        sections = one.sections()
        for section in sections:
            legend = [section.note] if section.note not in parts else []
            parts += [f"## {section.title}", markdown(section), *legend]
            if section is sections[0]:
                parts.append(
                    f"![Quality against measured speedup: {', '.join(one.names)}]({name}.png)"
                )
    parts.append(sources(found))
    return "\n\n".join(parts).rstrip() + "\n"


def use_page(found: list[Frontier]) -> str:
    """Return the page of what to use, a table for each frontier."""
    parts = ["# What to use at each speedup", choices(found).note]
    for one in found:
        parts += [f"## {one.points[0].record.model}", markdown(choices([one])), sources([one])]
    return "\n\n".join(parts).rstrip() + "\n"


def sources(found: list[Frontier]) -> str:
    """Return the provenance of all points."""
    return provenance([point.record for one in found for point in one.points])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of cnn_dm")
    parser.add_argument(
        "--parts", help=f"parts to measure: {', '.join(PARTS)}; without --data sample alone"
    )
    parser.add_argument(
        "--model", default="smollm2-135m", help="preset, folder or hub id of the model on CNN/DM"
    )
    parser.add_argument("--adapters", type=Path, help="work folder of recipes/skip_adapters")
    parser.add_argument("--engines", default=ENGINES)
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument(
        "--ratios", default="1.25,1.5,2", help="predicted speedups of patches on CNN/DM"
    )
    parser.add_argument("--limit", type=int, default=200, help="number of articles")
    parser.add_argument(
        "--page", action="store_true", help="write the page of the stored rows alone"
    )
    args = parser.parse_args()
    parts = args.parts.split(",") if args.parts else PARTS if args.data else PARTS[:1]
    if args.data is None and set(parts) - {"sample"}:
        parser.error("expected --data PATH with cnn_dm, or --parts sample")
    for part in () if args.page else parts:
        measure(args, part)
    folder = Path("results") / NAME
    if ResultsFolder(folder).records():
        found = frontiers(read_records([folder]))
        write_atomic(folder / "README.md", page(found, folder))
        write_atomic(folder / "use.md", use_page(found))


if __name__ == "__main__":
    main()
