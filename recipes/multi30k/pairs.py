"""Rank all pairs of layers by the validation loss of the base at 6x, where two of twelve layers are
kept.

python recipes/multi30k/pairs.py --work runs/multi30k --to results/multi30k/pairs.json
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

from ulskip_cli.core.config import compose_training
from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.schedule import Stage
from ulskip_cli.inference.loading import load
from ulskip_cli.tasks.encoding import pad_token_id
from ulskip_cli.training.data import (
    PairCollator,
    TokenPairs,
    load_training_texts,
)
from ulskip_cli.training.trainer import validation_losses
from ulskip_cli.training.two_pass_loss import TwoPassLoss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/multi30k"))
    parser.add_argument("--weights", default="base")
    parser.add_argument("--to", type=Path, default=Path("results/multi30k/pairs.json"))
    parser.add_argument("--limit", type=int, default=200)
    args = parser.parse_args()
    folder = args.work / "data"
    files = [
        "task.dataset=files",
        f"task.source_file={folder}/val.de",
        f"task.reference_file={folder}/val.en",
    ]
    config = compose_training(
        [
            f"model.path={args.work / args.weights}",
            "model.dtype=float32",
            *files,
            f"limit={args.limit}",
        ]
    )
    loaded = load(config.model)
    texts = load_training_texts(config, loaded.tokenizer)
    pairs = TokenPairs(texts.formatter.tokenize(loaded.tokenizer, texts.train), None)
    collator = PairCollator(pad_token_id(loaded.tokenizer))
    depth = loaded.metadata.num_layers
    schedules = {str(kept): (Stage(0, kept),) for kept in combinations(range(depth), 2)}
    found = validation_losses(TwoPassLoss(loaded.model), schedules, pairs, collator, 64)
    losses = {kept: found[str(kept)] for kept in combinations(range(depth), 2)}
    ranked = sorted(losses, key=losses.__getitem__)
    rows = [{"kept_layers": kept, "validation_loss": round(losses[kept], 4)} for kept in ranked]
    write_atomic(
        args.to,
        json.dumps({"weights": args.weights, "examples": len(pairs), "pairs": rows}, indent=1)
        + "\n",
    )
    for row in rows[:8]:
        print(row)
    for kept in ((0, 1), (0, depth - 1), (depth - 2, depth - 1)):
        print(kept, round(losses[kept], 3), f"rank {ranked.index(kept) + 1} of {len(ranked)}")


if __name__ == "__main__":
    main()
