"""Choose layers after training: train the gaps of the sets that several strategies choose for some
minutes each.

    python recipes/skip_adapters/layers.py --data PATH/cnn_dm --work runs/skip_adapters

The sets with the lowest losses before a training need not have the lowest ones after it. The
records of the trainings, with their validation losses, go to results/skip_adapters/training/. If it
is interrupted, the same command resumes.
"""

import argparse
from pathlib import Path

from reproduce import GAPS, RATIOS, TRAIN, call, layers, prepare, store_records, task

from ulskip_cli.experiments.results import ResultsFolder

STRATEGIES = ("block_influence", "one_block", "search")
COUNTS = (24, 20)  # of kept layers
WINDOWS, EPOCHS, EXAMPLES = 80, 3, 30


def choose(work: Path) -> ResultsFolder:
    """Return rows whose layers the strategies choose, with patches, on training articles."""
    call(
        *("sweep", *task(work, "choose"), f"results_dir={work}", "name=layers"),
        *(f"calibration.task={{file:{work}/train.jsonl}}", f"calibration.examples={EXAMPLES}"),
        *("correction=patch", "limit=1", "speed.enabled=false"),
        f"strategy={','.join(STRATEGIES)}",
        f"ratio={','.join(str(RATIOS[count]) for count in COUNTS)}",
    )
    return ResultsFolder(work / "layers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/skip_adapters"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args.data, args.work)
    for row in choose(args.work).records():
        count = len(row.kept_layers)
        if row.strategy not in STRATEGIES or count not in COUNTS:
            continue
        call(
            *("train", *TRAIN, *GAPS, *task(args.work, "windows"), *layers(row.kept_layers)),
            f"train.own.file={args.work}/own-layers.jsonl",
            f"train.validation={{file:{args.work}/choose.jsonl}}",
            *(f"limit={WINDOWS}", f"train.epochs={EPOCHS}", f"train.ratios={RATIOS[count]:g}"),
            f"output={args.work}/layers-{count}-{row.strategy}",
        )
    store_records(args.work)


if __name__ == "__main__":
    main()
