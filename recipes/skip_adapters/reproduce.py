"""Measure what patches and a skip adapter recover on a pretrained model: SmolLM2-135M on CNN/DM, on
two cores.

    python recipes/skip_adapters/reproduce.py --data PATH/cnn_dm --work runs/skip_adapters

PATH holds train.jsonl.gz (100 articles) and validation.jsonl.gz (300). Patches learn from the
training articles, and the adapter also from the last 80 validation articles. The first 200
validation articles are reported, and the 20 between them watch the training. On one core, the
adapter of 24 layers trains for less than an hour, a row takes 3 to 10 minutes, and everything less
than two hours. If it is interrupted, the same command resumes. --only chooses numbers of layers,
and --page writes the page of the stored rows alone. With --results, score.py of recipes/real_model
computes the shares and intervals again from the stored answers.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.tables import markdown_table, provenance

FOLDER = Path("results/skip_adapters")
WORDS, WINDOWS = 250, 3  # words of a window, windows of an article
REPORTED, WATCHED = 200, 20  # validation articles


class Schedule(NamedTuple):
    """A target, the layers that are kept for it, and the strategy that found them on training
    articles with patches.
    """

    ratio: float
    layers: tuple[int, ...]
    found_by: str

    @property
    def overrides(self) -> list[str]:
        """The overrides that keep these layers; `search` keeps those that it is given."""
        given = json.dumps(self.layers, separators=(",", ":"))
        return ["strategy=search", f"strategy.layers={given}"]


SCHEDULES = {
    24: Schedule(1.25, (*range(11), *range(17, 30)), "one_block"),
    20: Schedule(1.5, (*range(4), *range(13, 20), *range(21, 30)), "search"),
    15: Schedule(2.0, (0, 1, *range(17, 30)), "one_block"),
}
TRAINED = 24  # layers of the adapter
# Two answers of the full model to every window, one greedy and one sampled, and the second half of
# each prompt.
TRAIN = [
    "train=adapter",
    "train.responses=own",
    "train.own.samples=2",
    "train.prompt_share=0.5",
    "train.batch_size=16",
    "train.max_length=640",
    "train.precision=bf16",
    "train.lora.rank=128",
    "train.lora.alpha=256",
    "train.save_every=12",
    "train.log_every=4",
]
# The layers around each gap alone, in cheap steps, before the whole view.
GAPS = [
    "train.gap_weight=1",
    "train.ce_weight=0",
    "train.distill_weight=0",
    "train.learning_rate=1e-3",
    "correction.learning_rate=1e-3",
    "train.evaluate_every=1000",
    "train.epochs=3",
]
WHOLE = [
    "train.ce_weight=1",
    "train.learning_rate=5e-4",
    "train.evaluate_every=15",
    "train.epochs=1",
]
HEADS = (
    *("layers", "strategy", "correction", "prompt", "agreement", "KL", "decode loss"),
    *("R-1", "R-2", "R-L", "R-1 of full", "loops"),
)
NOTE = (
    "Patches learned from 100 training articles, the adapter from 80 further ones too. Every row is"
    " measured on the same other articles, with greedy answers of at most 96 tokens. Agreement: the"
    " share of positions in the full model's own answers at which the most likely token is the full"
    " model's, with its 95% interval; KL: the mean divergence from the full model there. Prompt:"
    " all means that every layer reads the prompt, kept that only the kept layers do. R-1 of full:"
    " ROUGE-1 as a share of the full model's, with the 95% interval of the paired bootstrap. Loops:"
    " answers that repeat themselves. `answers.jsonl.gz` has every answer."
)


def call(*arguments: str) -> None:
    print("ulskip", *arguments, flush=True)
    if code := invoke(list(arguments)):
        sys.exit(code)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def windows(articles: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the first WINDOWS parts of WORDS words of every article as articles, without those of
    less than half as many words.
    """
    result = []
    for article in articles:
        words = article["article"].split()
        for i in range(WINDOWS):
            window = words[i * WORDS : (i + 1) * WORDS]
            if len(window) >= WORDS // 2:
                result.append(
                    {"id": f"{article['id']}-{i}", "article": " ".join(window)}
                    | {"highlights": article["highlights"]}
                )
    return result


def prepare(data: Path, work: Path) -> None:
    """Write the training articles, the windows of these and of others, and the validation articles
    that are reported and that watch the training.
    """
    articles, validation = (read(data / f"{split}.jsonl.gz") for split in ("train", "validation"))
    others = validation[REPORTED:]
    files = {
        "train": articles,
        "windows": windows(articles + others[WATCHED:]),
        "choose": others[:WATCHED],
        "report": validation[:REPORTED],
    }
    for name, rows in files.items():
        write_atomic(work / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def task(work: Path, name: str) -> list[str]:
    """Return the overrides that choose the model and a file of `prepare`."""
    return [
        "model=smollm2-135m",
        "task=cnn_dm",
        f"task.max_article_words={WORDS}",
        "max_new_tokens=96",
        f"task.file={work}/{name}.jsonl",
    ]


def train(work: Path) -> None:
    """Train the adapter of TRAINED layers: first the layers around its gap, and from there its
    whole view, into the folder adapter-TRAINED.
    """
    schedule = SCHEDULES[TRAINED]
    common = [
        *("train", *TRAIN, *task(work, "windows"), *schedule.overrides),
        f"train.own.file={work}/own.jsonl",
        f"train.validation={{file:{work}/choose.jsonl}}",
        f"train.ratios={schedule.ratio:g}",
        "correction.kind=full",
    ]
    gaps = work / f"gaps-{TRAINED}"
    call(*common, *GAPS, f"output={gaps}")
    call(*common, *WHOLE, f"train.start={gaps}", f"output={work}/adapter-{TRAINED}")


def evaluate(work: Path, count: int, limit: int) -> None:
    """Evaluate `count` layers on `limit` articles with patches; 24 layers also with the adapter and
    with the best block without a correction, and 20 with a prompt that only the kept layers read.
    """
    schedule = SCHEDULES[count]
    common = [
        *task(work, "report"),
        f"limit={limit}",
        f"name={FOLDER.name}",
        "batch_size=25",
        f"calibration.task={{file:{work}/train.jsonl}}",
        "calibration.examples=100",
        "speed.enabled=false",
        f"ratio={schedule.ratio:g}",
    ]
    prompts = "all,kept" if count == 20 else "all"
    call("sweep", *common, *schedule.overrides, "correction=patch", f"prompt_layers={prompts}")
    if count == TRAINED:
        adapter = ["correction=adapter", f"correction.path={work}/adapter-{count}"]
        call("sweep", *common, *schedule.overrides, *adapter)
        call("sweep", *common, "strategy=one_block")


def strategy(row: Record) -> str:
    """Name the strategy that found the layers of a row: `search` of SCHEDULES was given them."""
    return SCHEDULES[len(row.kept_layers)].found_by if row.strategy == "search" else row.strategy


def correction(row: Record) -> str:
    """Name the correction of a row's views, and the kind of its patches."""
    return f"{row.correction.name} ({row.correction.kind})" if row.correction else "none"


def line(row: Record) -> list[str]:
    """Return the cells of a row in the table."""
    share, agreement = "100%", "1"  # of the full model, which has no comparison
    if row.agreement is not None:
        agreement = f"{row.agreement:.3f} ({row.agreement_low:.3f} to {row.agreement_high:.3f})"
    if versus := row.vs_baseline.get("rouge1"):
        low, middle, high = (
            (versus.full + end) / versus.full
            for end in (versus.delta_low, versus.delta, versus.delta_high)
        )
        share = f"{middle:.1%} ({low:.1%} to {high:.1%})"
    return [
        f"{len(row.kept_layers)}/{row.num_layers}",
        strategy(row),
        correction(row),
        row.prompt_layers,
        agreement,
        f"{row.kl_divergence or 0:.3f}",
        f"{row.decode_loss:.2f}",
        *(f"{row.value(key):.1f}" for key in ("rouge1", "rouge2", "rougeL")),
        share,
        f"{row.degenerate['loop']}/{row.num_examples}",
    ]


def page(rows: list[Record]) -> str:
    """Return the page of all rows, by layers and agreement; sorts `rows`."""
    rows.sort(key=lambda row: (-len(row.kept_layers), row.agreement or 1.0))
    parts = [
        "# SmolLM2-135M on CNN/DM: what corrections recover",
        markdown_table(HEADS, map(line, rows), 4),
        NOTE,
        provenance(rows),
    ]
    return "\n\n".join(parts) + "\n"


def write_page() -> None:
    """Write the page, and every answer: a line for each row of runs.jsonl. Answers without
    generations stay as they are stored, because generations contain the text of the articles and
    are not committed.
    """
    results, file = ResultsFolder(FOLDER), FOLDER / "answers.jsonl.gz"
    rows = [row for row in results.records() if row.is_done]
    stored = {line["row"]: line for line in read(file)} if file.exists() else {}
    for row in rows:
        if found := results.generations(row.id):
            texts = [answer["hypothesis"] for answer in found]
            stored[row.id] = {"row": row.id, "answers": texts}
    lines = [json.dumps(stored[row.id], ensure_ascii=False) + "\n" for row in rows]
    write_atomic(file, gzip.compress("".join(lines).encode(), mtime=0))
    write_atomic(FOLDER / "README.md", page(rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/skip_adapters"))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--only", type=int, nargs="+", choices=SCHEDULES, default=[*SCHEDULES])
    parser.add_argument("--page", action="store_true", help="write the page alone")
    args = parser.parse_args()
    if not args.page:
        if args.data is None:
            parser.error("expected --data PATH with cnn_dm, or --page")
        args.work.mkdir(parents=True, exist_ok=True)
        prepare(args.data, args.work)
        for count in args.only:
            if count == TRAINED:
                train(args.work)
                for record in args.work.glob("*/training.json"):
                    file = FOLDER / "training" / f"{record.parent.name}.json"
                    write_atomic(file, record.read_text())
            evaluate(args.work, count, args.limit)
    write_page()


if __name__ == "__main__":
    main()
