"""Measure what lossless drafting gains: look-ups in the text (ngram), a few layers, and look-ups by
transformers.

    python recipes/lossless/reproduce.py name=translation limit=100 ratio=6
    python recipes/lossless/reproduce.py name=news model=smollm2-135m task=cnn_dm \\
        task.file=PATH/cnn_dm/validation.jsonl.gz task.max_article_words=100 \\
        max_new_tokens=64 limit=200 --engines ''

Overrides of `ulskip sweep` choose the model, the task, and the layers that draft; without layers,
only look-ups are measured. --engines adds look-ups in other engines, such as llama_cpp_q8_0, timed
in pairs with full decoding on torch. The first command takes about five minutes on two cores. If it
is interrupted, the same command resumes. The page goes to results/lossless/NAME/README.md.
"""

import argparse
import sys
from pathlib import Path

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.tables import markdown_table, provenance, title

HEADS = (
    *("batch", "drafter", "layers", "drafts", "acceptance", "tokens a check"),
    *("measured", "95%", "other answers"),
)
NOTE = (
    "Drafts: the most tokens of a check. Acceptance: the accepted share of drafts. Measured: decode"
    " seconds per token of full decoding over those of drafting, in timed pairs, on torch unless"
    " transformers drafts. Other answers: those whose tokens differ from those of full decoding;"
    " formats of fewer bits change answers themselves."
)
LAYERS = ("strategy", "correction", "ratio")  # keys that choose the layers that draft


def count_differing(folder: ResultsFolder, row: Record) -> int:
    """Count the answers whose tokens differ from those of full decoding."""
    pairs = zip(folder.generations(row.id), folder.generations(row.baseline_id or ""), strict=True)
    return sum(one["token_ids"] != other["token_ids"] for one, other in pairs)


def drafter_of(row: Record) -> str:
    """Name what drafts."""
    name = row.config.decoding.draft
    if row.engine in ("torch", "speculative"):
        return name
    return " ".join(filter(None, [name, "of", row.engine, row.engine_weights]))


def cells_of(row: Record, differing: int) -> list[str]:
    """Return the cells of a row in the table."""
    drafter, speedup = drafter_of(row), row.measured_speedup or 0.0
    return [
        str(row.batch_size),
        drafter,
        "–" if drafter.startswith("ngram") else f"{len(row.kept_layers or ())}/{row.num_layers}",
        str(row.draft_tokens),
        "–" if row.acceptance_rate is None else f"{row.acceptance_rate:.2f}",
        "–" if row.mean_accepted_length is None else f"{row.mean_accepted_length:.2f}",
        f"{speedup:.2f}",
        row.interval or "–",
        f"{differing}/{row.num_examples}",
    ]


def page(folder: ResultsFolder) -> str:
    """Write the page: the table and an explanation of its columns."""
    rows = [row for row in folder.records() if row.draft_tokens and row.is_done]
    rows.sort(key=lambda row: (row.batch_size, drafter_of(row), row.draft_tokens))
    lines = [cells_of(row, count_differing(folder, row)) for row in rows]
    table = markdown_table(HEADS, lines, 0)
    return f"# Lossless drafting: {title(rows)}\n\n{table}\n\n{NOTE}\n\n{provenance(rows)}\n"


def main() -> None:
    """Run both sweeps and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", help="overrides of `ulskip sweep`, with name=")
    parser.add_argument("--engines", default="transformers", help="others that look up, or none")
    args = parser.parse_args()
    names = [word.removeprefix("name=") for word in args.overrides if word.startswith("name=")]
    if not names:
        parser.error(
            "expected name=NAME, got no name; add name=<new folder under results/lossless/>"
        )
    point = ["results_dir=results/lossless", "batch_size=1", *args.overrides]
    layers = [*point, "decoding=self_speculative"]
    text = [word for word in point if word.partition("=")[0].partition(".")[0] not in LAYERS]
    names_layers = len(text) < len(point)
    text += ["decoding=prompt_lookup", "strategy=full"]
    grids = [text, *[layers] * names_layers]
    for engine in filter(None, args.engines.split(",")):
        baseline = [] if engine == "transformers" else ["baseline_engine=auto"]
        grids.append([*text, f"engine={engine}", *baseline])
    for grid in grids:
        print("ulskip sweep", *grid, flush=True)
        if code := invoke(["sweep", *grid]):
            sys.exit(code)
    folder = ResultsFolder(Path("results/lossless") / names[-1])
    write_atomic(folder.path / "README.md", page(folder))
    print(folder.path / "README.md")


if __name__ == "__main__":
    main()
