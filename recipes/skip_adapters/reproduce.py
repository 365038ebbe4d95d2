"""Measure what patches and skip adapters recover on a pretrained model: SmolLM2-135M on CNN/DM, on
two cores.

    python recipes/skip_adapters/reproduce.py --data PATH/cnn_dm --work runs/skip_adapters

PATH holds train.jsonl.gz (100 articles) and validation.jsonl.gz (300). Patches and adapters learn
from the training articles. The last 100 validation articles choose options, and the first 100 are
reported. The recipe takes about four hours on two cores. If it is interrupted, the same command
resumes. --train and --evaluate run one half, --page neither.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.tables import provenance

NAME = "skip_adapters"
WORDS, WINDOWS, CHOOSING = 250, 3, 100
RATIOS = {24: 1.25, 20: 1.5, 15: 2}
# The layers of an adapter: found on training articles by strategy=block_influence, search with
# patches, and one_block.
LAYERS = {
    24: [*range(12), 16, *range(18, 25), *range(26, 30)],
    20: [*range(4), *range(13, 20), *range(21, 30)],
    15: [0, 1, *range(17, 30)],
}
# More text, not more epochs: three windows of every article, each with its reference, five own
# answers and its second half.
TRAIN = [
    "model=smollm2-135m",
    "train=adapter",
    "train.responses=both",
    "train.own.samples=5",
    "train.prompt_share=0.5",
    "train.epochs=1",
    "train.max_length=640",
    "train.precision=bf16",
    "train.lora.rank=32",
    "train.lora.alpha=64",
    "train.save_every=30",
    "train.evaluate_every=120",
    "train.log_every=10",
]


def call(*arguments: str) -> None:
    print("ulskip", *arguments, flush=True)
    if code := invoke(list(arguments)):
        sys.exit(code)


def prepare(data: Path, work: Path) -> None:
    """Write the windows of the training articles, and the validation articles that are reported and
    that choose options.
    """
    work.mkdir(parents=True, exist_ok=True)
    link = work / "train.jsonl.gz"
    if not link.exists():
        link.symlink_to((data / link.name).resolve())
    with gzip.open(link, "rt", encoding="utf-8") as lines:
        articles = [json.loads(line) for line in lines]
    windows = []
    for article in articles:
        words = article["article"].split()
        for i in range(WINDOWS):
            part = words[i * WORDS : (i + 1) * WORDS]
            if len(part) >= WORDS // 2:
                windows.append(
                    {
                        "id": f"{article['id']}-{i}",
                        "article": " ".join(part),
                        "highlights": article["highlights"],
                    }
                )
    write_atomic(work / "windows.jsonl", "".join(json.dumps(one) + "\n" for one in windows))
    with gzip.open(data / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        validation = list(lines)
    write_atomic(work / "choose.jsonl", "".join(validation[-CHOOSING:]))
    write_atomic(work / "report.jsonl", "".join(validation[:-CHOOSING]))


def task(work: Path, name: str) -> list[str]:
    return [
        "task=cnn_dm",
        f"task.max_article_words={WORDS}",
        "task.max_new_tokens=96",
        f"task.file={work}/{name}",
    ]


def layers(count: int) -> list[str]:
    return ["strategy=search", f"strategy.layers={str(LAYERS[count]).replace(' ', '')}"]


def train(work: Path, only: str) -> None:
    """Train an adapter for each set of layers, and one with each source of responses alone."""
    validation = f"train.validation={{file:{work}/choose.jsonl,limit:20}}"
    trainings = {f"adapter-{count}": (count, []) for count in LAYERS}
    # One epoch of the references is 59 steps; own answers alone get as many, so that only their
    # source differs.
    trainings |= {
        f"adapter-20-{kind}": (20, [f"train.responses={kind}", "train.max_steps=59"])
        for kind in ("reference", "own")
    }
    trainings["adapter-24-own"] = (24, ["train.responses=own", "train.max_steps=89"])
    # The same with cross-entropy on the references beside the divergence from the full model.
    mixed = ["train.responses=reference", "train.max_steps=59", "train.ce_weight=1"]
    trainings |= {f"adapter-{count}-mixed": (count, mixed) for count in (24, 20)}
    # 30 further steps on the stored own answers.
    more = [
        "train.responses=own",
        "train.max_steps=30",
        f"train.start={work}/adapter-20-own",
    ]
    trainings["adapter-20-own-further"] = (20, more)
    for name, (count, more) in trainings.items():
        if not only or name in only.split(","):
            call(
                "train",
                *TRAIN,
                *task(work, "windows.jsonl"),
                f"train.own.file={work}/own.jsonl",
                validation,
                *layers(count),
                f"train.ratios={RATIOS[count]}",
                *more,
                f"output={work}/{name}",
            )


def evaluate(work: Path, limit: int) -> None:
    """Evaluate adapters, patches and plain skipping; at 1.5x also with the prompt through the kept
    layers alone.
    """
    common = [
        "model=smollm2-135m",
        *task(work, "report.jsonl"),
        f"limit={limit}",
        f"name={NAME}",
        "batch_size=25",
        f"calibration.task={{file:{work}/train.jsonl.gz}}",
        "calibration.examples=100",
        "speed.enabled=false",
    ]
    for file in sorted(work.glob("adapter-*/adapter.json")):
        count = int(file.parent.name.split("-")[1])
        call(
            "sweep",
            *common,
            *layers(count),
            f"ratio={RATIOS[count]:g}",
            "correction=adapter",
            f"correction.path={file.parent}",
        )
    ratios = ",".join(f"{ratio:g}" for ratio in RATIOS.values())
    call("sweep", *common, "strategy=one_block", f"ratio={ratios}", "correction=patch,none")
    call(
        "sweep",
        *common,
        *layers(20),
        f"ratio={RATIOS[20]:g}",
        "correction=patch",
        "prompt_layers=all,kept",
    )


def correction(row: Record) -> str:
    """Name the correction of a row's views."""
    if row.correction is None:
        return "none"
    return (
        f"adapter {Path(row.correction.path).name}"
        if row.correction.path
        else f"patch ({row.correction.kind})"
    )


def line(row: Record) -> list[str]:
    """Return the cells of a row; the share of full ROUGE-1 has its paired interval."""
    cells = [
        f"{len(row.kept_layers)}/{row.num_layers}",
        row.strategy,
        correction(row),
        row.prompt_layers,
    ]
    cells += [
        f"{row.decode_loss:.2f}",
        *(f"{row.value(key):.1f}" for key in ("rouge1", "rouge2", "rougeL")),
    ]
    versus = row.vs_baseline.get("rouge1")
    share = "100%"
    if versus:
        low, middle, high = (
            (versus.full + end) / versus.full
            for end in (versus.delta_low, versus.delta, versus.delta_high)
        )
        share = f"{middle:.0%} ({low:.0%} to {high:.0%})"
    return [*cells, share, f"{row.degenerate['loop']}/{row.num_examples}"]


def page(rows: list[Record]) -> str:
    heads = [
        "layers",
        "strategy",
        "correction",
        "prompt",
        "decode loss",
        "R-1",
        "R-2",
        "R-L",
        "R-1 of full",
        "loops",
    ]
    order = sorted(
        rows,
        key=lambda row: (-len(row.kept_layers), row.strategy, row.prompt_layers, correction(row)),
    )
    table = [f"| {' | '.join(heads)} |", "| --- " * 4 + "| ---: " * 6 + "|"]
    table += [f"| {' | '.join(line(row))} |" for row in order]
    note = (
        "Patches and adapters learned from 100 training articles. Every row is measured on the same"
        " validation articles, with greedy answers of at most 96 tokens. Prompt: all means that"
        " every layer encodes the prompt; kept means that only the kept layers do. R-1 of full:"
        " ROUGE-1 as a share of the full model's, with the 95% interval of the paired bootstrap."
        " Loops: answers that repeat themselves."
    )
    return (
        "\n\n".join(
            [
                "# SmolLM2-135M on CNN/DM: what corrections recover",
                "\n".join(table),
                note,
                provenance(rows),
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/skip_adapters"))
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument(
        "--only", default="", help="train these adapters alone: adapter-20,adapter-20-own,..."
    )
    parser.add_argument("--train", action="store_true", help="train alone")
    parser.add_argument("--evaluate", action="store_true", help="evaluate alone")
    parser.add_argument(
        "--page", action="store_true", help="write the page of the stored rows alone"
    )
    args = parser.parse_args()
    if not args.page:
        prepare(args.data, args.work)
        if not args.evaluate:
            train(args.work, args.only)
        if not args.train:
            evaluate(args.work, args.limit)
    folder = Path("results") / NAME
    rows = [row for row in ResultsFolder(folder).records() if row.decode_loss is not None]
    if rows:
        write_atomic(folder / "README.md", page(rows))


if __name__ == "__main__":
    main()
