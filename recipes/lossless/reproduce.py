"""Measure what lossless drafting gains: look-ups in the text (ngram), a few layers, both, and the
look-ups of transformers.

    python recipes/lossless/reproduce.py name=translation limit=100 ratio=6
    python recipes/lossless/reproduce.py name=news model=smollm2-135m task=cnn_dm \\
        task.file=runs/drafter/report.jsonl task.max_article_words=250 task.max_new_tokens=96 \\
        limit=20 ratio=6 strategy=search 'strategy.layers=[0,7,14,21,29]' \\
        correction=adapter correction.path=runs/drafter/adapter

Overrides of `ulskip sweep` choose the model, the task, and the layers that draft. drafter.py trains
the adapter of the second command. On two cores with AVX512, the first command takes about 20
minutes and the second an hour. If it is interrupted, the same command resumes. The page goes
to results/lossless/NAME/README.md.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence

import torch

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.workload import encode_workload
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.report.tables import provenance, title

HEADS = (
    *("batch", "drafter", "layers", "drafts", "acceptance", "tokens a check", "expected"),
    *("measured", "95%", "other answers", "without near-ties"),
)
NOTE = (
    "Drafts: the most tokens of a check. Acceptance: the accepted share of drafts. Expected: the"
    " tokens gained over the time that drafts and checks should take, by their costs as measured"
    " before the run. Measured: decode seconds per token of full decoding over those of drafting"
    " with the same engine, the median of pairs. Other answers: those whose tokens differ from"
    " those of full decoding."
)
NEAR_TIE_NOTE = (
    " Without near-ties: those whose first two different tokens have logits more than two steps of"
    " bfloat16 apart; a check of several tokens rounds in another order than steps do, except with"
    " ulskip's kernels for CPUs since 0.4.0."
)
NEAR = 2  # steps of bfloat16 between the logits of two tokens
# (number of the example, token ids of two answers) -> True if they differ at a near-tie
IsNearTie = Callable[[int, Sequence[int], Sequence[int]], bool]
LAYERS = ("strategy", "correction", "ratio")  # keys that choose the layers that draft


def near_ties(config: Config) -> IsNearTie:
    """Return the test of near-ties with the full model of an experiment."""
    loaded = load(config.model)
    model = loaded.model.float()  # exact, and faster for long inputs
    prompts = encode_workload(resolve(config), load_tokenizer(config.model)).prompts

    @torch.inference_mode()
    def is_near_tie(number: int, one: Sequence[int], other: Sequence[int]) -> bool:
        same = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        ids = torch.tensor([[*prompts[number], *one[:same]]])
        logits = model(ids, logits_to_keep=1).logits[0, -1].float()
        first, second = float(logits[one[same]]), float(logits[other[same]])
        step = 2.0 ** (math.floor(math.log2(max(abs(first), abs(second)))) - 7)
        return abs(first - second) <= NEAR * step

    return is_near_tie


def count_differing(
    folder: ResultsFolder, one: str, other: str, is_near_tie: IsNearTie
) -> tuple[int, int]:
    """Count the answers whose tokens differ, and those among them that do not differ at a
    near-tie.
    """
    pairs = enumerate(zip(folder.generations(one), folder.generations(other), strict=True))
    ids = [(i, a["token_ids"], b["token_ids"]) for i, (a, b) in pairs]
    differing = [answers for answers in ids if answers[1] != answers[2]]
    return len(differing), sum(not is_near_tie(*answers) for answers in differing)


def drafter_of(row: Record) -> str:
    """Name what drafts."""
    name = row.config.decoding.draft
    return f"{name} of transformers" if row.engine == "transformers" else name


def cells_of(row: Record, differing: int) -> list[str]:
    """Return the cells of a row in the table, without that of near-ties."""
    drafter, speedup = drafter_of(row), row.measured_speedup or 0.0
    ends = f"{row.measured_speedup_low:.2f} to {row.measured_speedup_high:.2f}"
    return [
        str(row.batch_size),
        drafter,
        "–" if drafter.startswith("ngram") else f"{len(row.kept_layers or ())}/{row.num_layers}",
        str(row.draft_tokens),
        "–" if row.acceptance_rate is None else f"{row.acceptance_rate:.2f}",
        "–" if row.mean_accepted_length is None else f"{row.mean_accepted_length:.2f}",
        "–" if row.predicted_speedup is None else f"{row.predicted_speedup:.2f}",
        f"{speedup:.2f}",
        ends if row.speedup and row.speedup.low else "–",
        f"{differing}/{row.num_examples}",
    ]


def page(folder: ResultsFolder, is_near_tie: IsNearTie) -> str:
    """Write the page: the table and an explanation of its columns."""
    rows = [row for row in folder.records() if row.draft_tokens and row.is_done]
    rows.sort(key=lambda row: (row.batch_size, drafter_of(row), str(row.draft_tokens)))
    table, differ = [list(HEADS)], False
    for row in rows:
        differing, without = count_differing(folder, row.id, row.baseline_id or "", is_near_tie)
        table.append([*cells_of(row, differing), str(without)])
        differ = differ or differing > 0
    # Near-ties have a column if any answer differs.
    lines = [f"| {' | '.join(cells if differ else cells[:-1])} |" for cells in table]
    lines.insert(1, "|" + " ---: |" * (len(HEADS) if differ else len(HEADS) - 1))
    note = NOTE + NEAR_TIE_NOTE if differ else NOTE
    parts = [f"# Lossless drafting: {title(rows)}", "\n".join(lines), note, provenance(rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run both sweeps and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", help="overrides of `ulskip sweep`, with name=")
    parser.add_argument("--drafts", default="1,2,3,4,auto", help="draft lengths at batch size 1")
    args = parser.parse_args()
    if not any(text.startswith("name=") for text in args.overrides):
        parser.error(
            "expected name=NAME, got no name; add name=<new folder under results/lossless/>"
        )
    point = ["results_dir=results/lossless", "batch_size=1", *args.overrides]
    point.append(f"decoding.draft_tokens=choice({args.drafts})")
    layers = [*point, "decoding=self_speculative", "decoding.draft=choice(layers,both)"]
    text = [word for word in point if word.partition("=")[0].partition(".")[0] not in LAYERS]
    text += ["decoding=prompt_lookup", "strategy=full"]
    for grid in (text, layers, [*text, "engine=transformers"]):
        print("ulskip sweep", *grid, flush=True)
        if code := invoke(["sweep", *grid]):
            sys.exit(code)
    config = compose([*args.overrides, "results_dir=results/lossless"], command="sweep")
    folder = ResultsFolder.of(config)
    write_atomic(folder.path / "README.md", page(folder, near_ties(config)))
    print(folder.path / "README.md")


if __name__ == "__main__":
    main()
