"""Compute the shares of the full model's ROUGE-1, with 95% intervals of the paired bootstrap, from
the stored answers, without ulskip.

    python recipes/skip_adapters/shares.py --data PATH/cnn_dm
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

FOLDER = Path("results/skip_adapters")
RESAMPLES, SEED = 10_000, 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    lines = gzip.decompress((args.data / "validation.jsonl.gz").read_bytes()).splitlines()
    references = [json.loads(line)["highlights"] for line in lines]
    rows = [json.loads(line) for line in (FOLDER / "runs.jsonl").read_text().splitlines()]
    stored = gzip.decompress((FOLDER / "answers.jsonl.gz").read_bytes()).decode().splitlines()
    answers = {entry["row"]: entry["answers"] for entry in map(json.loads, stored)}
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    scores = {
        row: np.array(
            [
                100 * scorer.score(reference, answer)["rouge1"].fmeasure
                for reference, answer in zip(references, predictions, strict=False)
            ]
        )
        for row, predictions in answers.items()
    }
    for row in rows:
        if row["id"] not in scores or not row.get("baseline_id"):
            continue
        full, kept = scores[row["baseline_id"]], scores[row["id"]]
        drawn = np.random.default_rng(SEED).integers(len(full), size=(RESAMPLES, len(full)))
        shares = kept[drawn].mean(axis=1) / full[drawn].mean(axis=1)
        low, high = np.quantile(shares, [0.025, 0.975])
        print(
            f"{row['id']} {len(row['kept_layers'])}/{row['num_layers']} layers:"
            f" {kept.mean():.1f} of {full.mean():.1f}, {kept.mean() / full.mean():.1%}"
            f" ({low:.1%} to {high:.1%})"
        )


if __name__ == "__main__":
    main()
