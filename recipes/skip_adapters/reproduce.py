"""Measure what patches and skip adapters recover on a pretrained model: SmolLM2-135M on CNN/DM, on
two cores.

    python recipes/skip_adapters/reproduce.py --data PATH/cnn_dm --work runs/skip_adapters

PATH holds train.jsonl.gz (100 articles) and validation.jsonl.gz (300). Patches and adapters learn
from the training articles, and an adapter with more text also from the last 80 validation articles.
The first 200 validation articles are reported, and the 20 between them watch the training. An
adapter trains for less than an hour on two cores, a row takes 5 to 50 minutes, and everything about
eight hours. If it is interrupted, the same command resumes. --only chooses the adapters to train,
of those in ADAPTERS, and --page writes the page of the stored rows alone. With --results, score.py
of recipes/real_model computes the shares and intervals again from the stored answers.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.files import write_atomic
from ulskip_cli.corrections import RECORD
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.tables import markdown_table, provenance

FOLDER = Path("results/skip_adapters")
WORDS, WINDOWS, REPORTED, WATCHED = 250, 3, 200, 20
RATIOS = {24: 1.25, 20: 1.5, 15: 2.0}
# The layers of an adapter, and the strategy that found them on training articles, with patches.
FOUND_BY = {24: "block_influence", 20: "search", 15: "one_block"}
LAYERS = {
    24: [*range(12), 16, *range(18, 25), *range(26, 30)],
    20: [*range(4), *range(13, 20), *range(21, 30)],
    15: [0, 1, *range(17, 30)],
}
ONE_BLOCK = {24: [*range(11), *range(17, 30)]}


class Adapter(NamedTuple):
    """The number of layers, the epochs in which the gaps alone are trained first, those of the
    whole view, if it learns from more text, if the whole view learns from answers of four beams
    in place of greedy ones, and if it skips one block.
    """

    layers: int
    gap_epochs: int
    epochs: int
    has_more: bool = False
    has_beams: bool = False
    is_one_block: bool = False

    @property
    def view(self) -> list[str]:
        """The overrides that choose its layers."""
        return layers((ONE_BLOCK if self.is_one_block else LAYERS)[self.layers])

    def __str__(self) -> str:
        gaps, more = ", gaps first" * bool(self.gap_epochs), ", more text" * self.has_more
        beams, block = ", 4 beams" * self.has_beams, ", one block" * self.is_one_block
        return f"adapter{block}{gaps}{more}{beams}"


ADAPTERS = {
    "adapter-24": Adapter(24, 0, 2),
    "adapter-24-gaps-more": Adapter(24, 3, 1, has_more=True),
    "adapter-24-block-gaps-more": Adapter(24, 3, 1, has_more=True, is_one_block=True),
    "adapter-20": Adapter(20, 0, 2),
    "adapter-20-gaps": Adapter(20, 6, 1),
    "adapter-20-gaps-more": Adapter(20, 3, 1, has_more=True),
    "adapter-20-gaps-more-beams": Adapter(20, 3, 1, has_more=True, has_beams=True),
    "adapter-15-gaps": Adapter(15, 6, 1),
    "adapter-15-gaps-more": Adapter(15, 3, 1, has_more=True),
}
FOLDED = {15}  # merged into the weights, so that every engine runs the adapter
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
WHOLE = ["train.ce_weight=1", "train.learning_rate=5e-4", "train.evaluate_every=15"]
GAPS = [
    "train.gap_weight=1",
    "train.ce_weight=0",
    "train.distill_weight=0",
    "train.learning_rate=1e-3",
    "correction.learning_rate=1e-3",
    "train.evaluate_every=1000",
]
HEADS = (
    *("layers", "strategy", "correction", "prompt", "agreement", "KL", "decode loss"),
    *("R-1", "R-2", "R-L", "R-1 of full", "loops"),
)
NOTE = (
    "Patches and adapters learned from 100 training articles, those with more text from 80"
    " further ones. Every row is measured on the same other articles, with greedy answers of at"
    " most 96 tokens. Agreement: the share of positions in the full model's own answers at which"
    " the most likely token is the full model's, with its 95% interval; KL: the mean divergence"
    " from the full model there. Prompt: all means that every layer reads the prompt, kept that"
    " only the kept layers do. R-1 of full: ROUGE-1 as a share of the full model's, with the 95%"
    " interval of the paired bootstrap. Loops: answers that repeat themselves. Gaps first: the"
    " layers around each gap were trained alone before the whole view. `answers.jsonl.gz` has"
    " every answer."
)


def call(*arguments: str) -> None:
    print("ulskip", *arguments, flush=True)
    if code := invoke(list(arguments)):
        sys.exit(code)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def windows(articles: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the first parts of every article as articles, without short ones."""
    found = []
    for article in articles:
        words = article["article"].split()
        for i in range(WINDOWS):
            part = words[i * WORDS : (i + 1) * WORDS]
            if len(part) >= WORDS // 2:
                found.append(
                    {"id": f"{article['id']}-{i}", "article": " ".join(part)}
                    | {"highlights": article["highlights"]}
                )
    return found


def prepare(data: Path, work: Path) -> None:
    """Write the windows of the training articles, and the validation articles that are reported and
    that watch the training.
    """
    articles, validation = (read(data / f"{split}.jsonl.gz") for split in ("train", "validation"))
    others = validation[REPORTED:]
    files = {
        "train": articles,
        "windows": windows(articles),
        "more": windows(articles + others[WATCHED:]),
        "choose": others[:WATCHED],
        "report": validation[:REPORTED],
    }
    for name, rows in files.items():
        write_atomic(work / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def task(work: Path, name: str) -> list[str]:
    return [
        "model=smollm2-135m",
        "task=cnn_dm",
        f"task.max_article_words={WORDS}",
        "task.max_new_tokens=96",
        f"task.file={work}/{name}.jsonl",
    ]


def layers(kept: Sequence[int]) -> list[str]:
    return ["strategy=search", f"strategy.layers={json.dumps(kept, separators=(',', ':'))}"]


def train(work: Path, name: str) -> None:
    """Train the whole view, after its gaps if they have epochs."""
    adapter = ADAPTERS[name]
    count, text = adapter.layers, "more" if adapter.has_more else "windows"
    common = [
        *("train", *TRAIN, *task(work, text), *adapter.view),
        f"train.own.file={work}/own-{text}.jsonl",
        f"train.validation={{file:{work}/choose.jsonl}}",
        f"train.ratios={RATIOS[count]:g}",
        *(["correction.kind=folded"] if count in FOLDED else []),
    ]
    if adapter.gap_epochs:
        start = work / name.replace("adapter", "start").removesuffix("-beams")
        call(*common, *GAPS, f"train.epochs={adapter.gap_epochs}", f"output={start}")
        common.append(f"train.start={start}")
    beams = ["train.own.num_beams=4"] if adapter.has_beams else []
    call(*common, *WHOLE, *beams, f"train.epochs={adapter.epochs}", f"output={work}/{name}")


def evaluate(work: Path, limit: int) -> None:
    """Evaluate patches and adapters, and at 1.5x a prompt that only the kept layers read."""
    common = [
        *task(work, "report"),
        f"limit={limit}",
        f"name={FOLDER.name}",
        "batch_size=25",
        f"calibration.task={{file:{work}/train.jsonl}}",
        "calibration.examples=100",
        "speed.enabled=false",
    ]
    for count, ratio in RATIOS.items():
        at = [*common, f"ratio={ratio:g}"]
        prompts = "all,kept" if count == 20 else "all"
        patched = ["correction=patch", f"prompt_layers={prompts}"]
        call("sweep", *at, *layers(LAYERS[count]), *patched)
        for folder in sorted(file.parent for file in work.glob(f"adapter-{count}*/{RECORD}")):
            corrected = ["correction=adapter", f"correction.path={folder}"]
            call("sweep", *at, *ADAPTERS[folder.name].view, *corrected)
    call("sweep", *common, "strategy=one_block", "ratio=1.25", "correction=none,patch")


def strategy(row: Record) -> str:
    """Name the strategy that found the layers of a row, which search may have been given."""
    if list(row.kept_layers) in ONE_BLOCK.values():
        return "one_block"
    return FOUND_BY[len(row.kept_layers)] if row.strategy == "search" else row.strategy


def correction(row: Record) -> str:
    """Name the correction of a row's views."""
    if row.correction is None:
        return "none"
    if not row.correction.path:
        return f"patch ({row.correction.kind})"
    return str(ADAPTERS[Path(row.correction.path).name])


def line(row: Record) -> list[str]:
    """Return the cells of a row in the table."""
    share, agreement = "100%", "1"
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


def table(rows: Iterable[Record]) -> str:
    return markdown_table(HEADS, map(line, rows), 4)


def key_of(row: Record) -> tuple[object, ...]:
    """Return what a row measures, whatever the version that measured it."""
    return row.kept_layers, row.strategy, correction(row), row.prompt_layers


def page(rows: list[Record], repeated: dict[str, bool]) -> str:
    """Return the page of the rows, of which those in `repeated` were made again, with the same
    answers or others.
    """
    rows.sort(key=lambda row: (-len(row.kept_layers), row.strategy, row.prompt_layers, row.label))
    best: dict[tuple[int, str | None], Record] = {}
    for row in sorted(rows, key=lambda row: row.agreement or 1.0):
        if row.prompt_layers == "all":
            best[len(row.kept_layers), row.correction and row.correction.name] = row
    parts = [
        "# SmolLM2-135M on CNN/DM: what corrections recover",
        "## The best row of each correction",
        table(row for row in rows if row in best.values()),
        "By agreement, with all layers reading the prompt.",
        "## All rows",
        table(rows),
        NOTE,
        provenance(rows),
    ]
    if repeated:
        same = f"the answers of {sum(repeated.values())} are the same"
        parts.append(f"{len(repeated)} of these rows were made again by a later version: {same}.")
    return "\n\n".join(parts) + "\n"


def write_page() -> None:
    """Write the page, and every answer: a line for each row. Answers without generations stay as
    they are stored, because generations contain the text of the articles and are not committed. The
    line of a row that was made again says if its answers are those that were stored before.
    """
    results, file = ResultsFolder(FOLDER), FOLDER / "answers.jsonl.gz"
    rows = list({key_of(row): row for row in results.records() if row.is_done}.values())
    stored = {line["row"]: line for line in read(file)} if file.exists() else {}
    before = [row for row in results.rows() if row.id in stored]
    answers_before = {row.id: stored[row.id]["answers"] for row in before}
    for row in rows:
        found, commit = results.generations(row.id), row.environment.git_commit
        if found and stored.get(row.id, {}).get("commit") != commit:
            texts = [answer["hypothesis"] for answer in found]
            line = {"row": row.id, "commit": commit, "answers": texts}
            for other in before:
                if key_of(other) == key_of(row) and other.environment.git_commit != commit:
                    line["same_as_before"] = answers_before[other.id] == texts
            stored[row.id] = line
    lines = [stored[row.id] for row in rows]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(file, gzip.compress(text.encode(), mtime=0))
    repeated = {line["row"]: line["same_as_before"] for line in lines if "same_as_before" in line}
    write_atomic(FOLDER / "README.md", page(rows, repeated))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/skip_adapters"))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--only", default=",".join(ADAPTERS), help="train these adapters alone")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    args = parser.parse_args()
    if not args.page:
        if args.data is None:
            parser.error("expected --data PATH with cnn_dm, or --page")
        args.work.mkdir(parents=True, exist_ok=True)
        prepare(args.data, args.work)
        for name in filter(None, args.only.split(",")):
            train(args.work, name)
        for record in args.work.glob("*/training.json"):
            write_atomic(FOLDER / "training" / f"{record.parent.name}.json", record.read_text())
        evaluate(args.work, args.limit)
    write_page()


if __name__ == "__main__":
    main()
