"""Measure acceptance and speedup of lossless drafting by draft length and ratio, and count changed
answers.

    python recipes/lossless/reproduce.py model=tiny model.dtype=float32 task.dataset=files \\
        task.source_file=test.de task.reference_file=test.en limit=300 batch_size=1 speed.pairs=15
        \\ name=tiny --drafts 2,4,auto
    python recipes/lossless/reproduce.py model=smollm2-135m model.dtype=float32 task=cnn_dm \\
        task.file=validation.jsonl.gz task.max_article_words=250 limit=20 batch_size=1 \\
        speed.pairs=21 name=cnn_dm --ratios 1.15,1.25 --drafts 2,4

Overrides of `ulskip sweep` choose model, task and strategy; --drafts, --ratios and --vocabs choose
the grid. An adapter that is trained on the model's own answers makes more drafts agree:

    ulskip train train=adapter model=tiny model.dtype=float32 task.dataset=files
    task.source_file=train.de \\
        task.reference_file=train.en limit=6000 train.responses=own train.own.max_new_tokens=48
        train.lora.rank=32 \\ train.lora.alpha=64 train.batch_size=16 train.ratios=6
        output=runs/drafts-6x
    python recipes/lossless/reproduce.py model=tiny model.dtype=float32 correction=adapter \\
        correction.path=runs/drafts-6x task.dataset=files task.source_file=test.de
        task.reference_file=test.en limit=300 \\ batch_size=1 speed.pairs=15 name=tiny-adapter
        --ratios 6 --drafts 1,2,3,4,auto
    python recipes/lossless/reproduce.py model=smollm2-135m model.dtype=float32 strategy=search
    strategy.layers=LAYERS \\
        correction=adapter correction.path=runs/skip_adapters/adapter-20-own task=cnn_dm \\
        task.file=runs/skip_adapters/report.jsonl task.max_article_words=250 task.max_new_tokens=96
        limit=20 \\ batch_size=1 speed.pairs=15 name=adapter --ratios 1.5 --drafts 1,2 --vocabs
        0,auto

`recipes/skip_adapters/` trains adapter-20-own and has its LAYERS.

If it is interrupted, the same command resumes. The page goes to results/lossless/NAME/README.md.
"""

import argparse
import sys
from pathlib import Path

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.config import compose
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.tables import provenance, title

HEADS = (
    "target",
    "layers",
    "drafts",
    "of tokens",
    "acceptance",
    "tokens a check",
    "expected",
    "measured",
    "95%",
    "other answers",
)


def count_differing(folder: ResultsFolder, one: str, other: str) -> int:
    """Count the sequences whose tokens differ."""
    pairs = zip(folder.generations(one), folder.generations(other), strict=True)
    return sum(a["token_ids"] != b["token_ids"] for a, b in pairs)


def predict_speedup(row: Record) -> float | None:
    """Predict the speedup from the acceptance by the formula of docs/strategies.md; None without a
    fixed draft length.
    """
    count, cost = row.draft_tokens, row.draft_cost
    if not isinstance(count, int) or not cost:
        return None
    return (1 + count * row.acceptance_rate) / (
        count * cost + 1
    )  # accepted / drafted = (a + a^2 + ... + a^k) / k


def vocab_of(row: Record) -> str:
    """Name the part of the vocabulary from which drafts are chosen."""
    return str(row.config["decoding"].get("draft_vocab") or "all")


def line(folder: ResultsFolder, row: Record) -> str:
    predicted, low = predict_speedup(row), row.measured_speedup_low
    cells = [
        f"{row.target_speedup:g}x" if row.target_speedup else "–",
        f"{len(row.kept_layers)}/{row.num_layers}",
        str(row.draft_tokens),
        vocab_of(row),
        f"{row.acceptance_rate:.3f}",
        f"{row.mean_accepted_length:.2f}",
        "–" if predicted is None else f"{predicted:.2f}",
        f"{row.measured_speedup:.2f}",
        f"{low:.2f}-{row.measured_speedup_high:.2f}",
        f"{count_differing(folder, row.id, row.baseline_id)}/{row.num_examples}",
    ]
    return f"| {' | '.join(cells)} |"


def page(folder: ResultsFolder) -> str:
    """Write the page: the table and an explanation of its columns."""
    rows = [row for row in folder.records() if row.draft_tokens and row.acceptance_rate is not None]
    rows.sort(
        key=lambda row: (
            row.layer_ratio,
            row.draft_tokens == "auto",
            str(row.draft_tokens).zfill(3),
            vocab_of(row),
        )
    )
    lines = [
        f"| {' | '.join(HEADS)} |",
        "|" + " ---: |" * len(HEADS),
        *(line(folder, row) for row in rows),
    ]
    note = (
        "Of tokens: the part of the vocabulary from which drafts are chosen, beside the tokens of"
        " the prompt (auto: the first 8192). Expected: the speedup by the formula of"
        " docs/strategies.md at this acceptance, for batch 1, if the bytes that a step reads decide"
        " its time and a check takes as long as a step, as on a GPU. Measured: decode seconds per"
        " token of full decoding over those of drafting, median of pairs. Other answers: sequences"
        " whose tokens differ from those of full decoding."
    )
    return (
        "\n\n".join(
            [f"# Lossless drafting: {title(rows)}", "\n".join(lines), note, provenance(rows)]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", help="overrides of `ulskip sweep`, with name=")
    parser.add_argument("--drafts", default="1,2,4,7,auto")
    parser.add_argument("--ratios", default="2,3,6")
    parser.add_argument("--vocabs", default="auto", help="values of decoding.draft_vocab, 0: all")
    args = parser.parse_args()
    if not any(text.startswith("name=") for text in args.overrides):
        parser.error(
            "expected name=NAME, got no name; add name=<new folder under results/lossless/>"
        )
    grid = [
        f"decoding.draft_tokens=choice({args.drafts})",
        f"decoding.draft_vocab=choice({args.vocabs})",
    ]
    grid.append(f"ratio=choice({args.ratios})")
    point = ["results_dir=results/lossless", "decoding=self_speculative", *args.overrides]
    arguments = ["sweep", *grid, *point]
    print("ulskip", *arguments, flush=True)
    if code := invoke(arguments):
        sys.exit(code)
    folder = ResultsFolder.of(compose(point))
    write_atomic(folder.path / "README.md", page(folder))
    print(Path(folder.path / "README.md"))


if __name__ == "__main__":
    main()
