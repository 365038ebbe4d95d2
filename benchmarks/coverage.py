"""Test if the intervals of speedups hold in other processes.

    python benchmarks/coverage.py [--processes 20] [--minutes 120] [--name coverage]

Each point is timed in many processes, spread over some hours, as `ulskip run` times it. The table
says how many of their intervals contain the median of all processes, and how much pairs, units and
processes vary. To see if it matters where the weights lie in memory, every third process also times
units of which every second one packs the weights anew. An interrupted benchmark goes on where it
stopped; the rows are in benchmarks/results/NAME.jsonl and the table in NAME.md.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev

from ulskip_cli.core import environment
from ulskip_cli.experiments.record import Environment, Pairs
from ulskip_cli.report.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
SMOLLM2 = ["model=smollm2-135m", "ratio=1.5", "batch_size=1", "model.dtype=float32"]
POINTS = {
    "embedded model, batch size 8": ["ratio=2"],
    "embedded model, batch size 1": ["ratio=2", "batch_size=1"],
    "SmolLM2-135M, batch size 1": [*SMOLLM2, "speed.new_tokens=16"],
}
# Units whose weights are packed anew or kept in turn, and the timed pairs of each.
OPENED, OPENED_PAIRS = 6, 3


def measure(point, with_opened):
    """Time one of POINTS in this process, and return its row in the JSON file. With `with_opened`,
    its `opened` are the speedups of OPENED further units: 0, 2 and 4 run after their weights were
    packed anew, 1, 3 and 5 with those of the unit before; else it is empty.
    """
    from ulskip_cli.core.config import compose
    from ulskip_cli.core.progress import ProgressCallback
    from ulskip_cli.engines.decoder import Decoder
    from ulskip_cli.engines.torch import native_model
    from ulskip_cli.experiments.paired_timing import measure_pairs, measure_units
    from ulskip_cli.experiments.point import resolve
    from ulskip_cli.experiments.runner import Models, make_pair, prepare_run

    config = compose(POINTS[point])
    models = Models()
    run = prepare_run(resolve(config), models)
    pair = make_pair(run, *models.decoders(run), config.batch_size)
    timed = measure_units(pair, config.speed, point, ProgressCallback())
    opened = []
    for i in range(OPENED if with_opened else 0):
        if i % 2 == 0:
            native_model._recognized.clear()  # which has the packed weights
            full, kept = (Decoder(replace(side.views)) for side in (pair.full, pair.strategy))
            pair = pair._replace(full=full, strategy=kept)
            measure_pairs(pair, range(1))  # packs them
        warm_up = measure_pairs(pair, range(1))
        unit = measure_pairs(pair, range(1, 1 + OPENED_PAIRS), warm_up)
        opened.append(median(unit.pairs.ratios()))
    return {
        "point": point,
        "began": timed.units[0].began,
        "other_cpus": timed.other_cpus,
        "pairs": timed.pairs.model_dump(mode="json"),
        "opened": opened,
        "environment": environment.versions() | environment.machine("cpu"),
    }


def spread(values):
    """Format the standard deviation of logarithms as a percentage."""
    return f"{stdev(values):.1%}" if len(values) > 1 else "–"


def line(point, rows):
    """Make the line of a point in the table from its rows, each of which is one process."""
    pairs_of = [Pairs.model_validate(row["pairs"]) for row in rows]
    speedups = [pairs.speedup() for pairs in pairs_of]  # [(value, low, high)]
    values = [value for value, _, _ in speedups]
    middle = median(values)
    inside = sum(low <= middle <= high for _, low, high in speedups)
    half = median(math.log(high / low) / 2 for _, low, high in speedups)
    ratios = [[math.log(ratio) for ratio in pairs.ratios()] for pairs in pairs_of]
    units = [[math.log(ratio) for ratio in pairs.unit_ratios()] for pairs in pairs_of]
    turns = [[math.log(ratio) for ratio in row["opened"]] for row in rows if row["opened"]]
    steps = [1e3 * median(pairs.full.costs()) for pairs in pairs_of]
    # Units with even numbers begin with weights that are packed anew, the next ones keep them.
    kept = [abs(b - a) for logs in turns for a, b in zip(logs[::2], logs[1::2], strict=True)]
    anew = [abs(b - a) for logs in turns for a, b in zip(logs[1::2], logs[2::2], strict=False)]
    return [  # the cells of HEAD
        point,
        f"{inside} of {len(rows)}",
        f"{middle:.2f}",
        f"{min(values):.2f}-{max(values):.2f}",
        f"{math.exp(half) - 1:.1%}",
        f"{fmean(map(stdev, ratios)):.1%}",
        f"{fmean(map(stdev, units)):.1%}",
        spread([math.log(value) for value in values]),
        f"{fmean(kept):.1%} and {fmean(anew):.1%}" if kept else "–",
        f"{min(steps):.2f}-{max(steps):.2f}",
    ]


HEAD = [
    *("point", "intervals that contain the median of all", "median", "smallest to largest"),
    *("half an interval", "sd of pairs", "sd of units", "sd of processes"),
    *("next unit, kept and opened anew", "full model's ms per token"),
]


def table(rows):
    """Format all rows as a page with its provenance."""
    rows_by_point = {point: [row for row in rows if row["point"] == point] for point in POINTS}
    lines = [line(point, rows_of) for point, rows_of in rows_by_point.items() if rows_of]
    facts = [Environment.model_validate(row["environment"], extra="ignore") for row in rows]
    versions = ", ".join(dict.fromkeys(here.version for here in facts))
    times = [row["began"] for row in rows]
    others = [row["other_cpus"] or 0.0 for row in rows]
    text = (
        "Standard deviations and differences are of logarithms. Next unit: the mean difference"
        " between two units that follow one another, with the same packed weights or after they"
        f" were packed anew. Timed from {min(times)} to {max(times)}; other processes used"
        f" {median(others):.1f} CPUs (median; at most {max(others):.1f}). ulskip {versions},"
        f" {facts[-1].machine}."
    )
    return (
        f"# Do the intervals hold in other processes?\n\n{markdown_table(HEAD, lines)}\n\n{text}\n"
    )


def main():
    """Time all points in turn, each in a process of its own, which runs this file with the hidden
    option --measure; write the table after each of them.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--name", default="coverage")
    parser.add_argument("--before", nargs="*", default=[], help="words before each command")
    parser.add_argument("--measure", choices=POINTS, help=argparse.SUPPRESS)
    parser.add_argument("--opened", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.opened)))
        return
    stored = RESULTS / f"{args.name}.jsonl"
    rows = [json.loads(text) for text in stored.read_text().splitlines()] if stored.exists() else []
    for number in range(args.processes):
        began = time.monotonic()
        for point in POINTS:
            if sum(row["point"] == point for row in rows) > number:  # by an earlier call
                continue
            command = [*args.before, sys.executable, __file__, "--measure", point]
            command += ["--opened"] * (number % 3 == 0)
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(output.splitlines()[-1]))
            with stored.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            stored.with_suffix(".md").write_text(table(rows))
            print(f"{number + 1} of {args.processes}: {point}", flush=True)
        elapsed = time.monotonic() - began
        if elapsed > 1:  # else an earlier call measured this round
            time.sleep(max(0.0, 60 * args.minutes / args.processes - elapsed))


if __name__ == "__main__":
    main()
