"""Count the answers that differ between batch 1 and batch 8, and the near-ties among them.

    python benchmarks/batch_invariance.py [--model tiny] [--ratio 2]

A difference is a near-tie if the top two logits of the batch-1 run are less than 1e-4 apart at the
first differing token: rounding in another order may then choose either token.
"""

import argparse
import json
from pathlib import Path

import torch

from ulskip_cli.core import environment
from ulskip_cli.core.config import compose
from ulskip_cli.engines.decoder import DecodeContext, Decoder, generate_all
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.workload import encode_workload
from ulskip_cli.inference.batching import BatchSize, padded
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.inference.teacher_forcing import encode_prompt, predict_response
from ulskip_cli.strategies.plan import make_plan

NEAR_TIE = 1e-4


def gap_at(decoder, prompt, tokens, position):
    """Measure the distance of the top two logits at the step that chose token `position`."""
    ids, mask = padded([prompt], 0, left=True)
    response = torch.tensor([tokens[: position + 1]])
    with torch.inference_mode():
        encoded = encode_prompt(decoder.prompt_model, ids, mask)
        logits = predict_response(decoder.stages, encoded, response)
    first, second = logits[0, position].topk(2).values
    return float(first - second)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--ratio", type=float, default=2.0)
    args = parser.parse_args()
    config = compose([f"model={args.model}", f"ratio={args.ratio}", "model.dtype=float32"])
    loaded = load(config.model)
    work = encode_workload(resolve(config), load_tokenizer(config.model))
    prompts = work.prompts
    counts = {}
    for strategy in ("full", "unified"):
        plan = make_plan(
            compose([f"model={args.model}", f"ratio={args.ratio}", f"strategy={strategy}"]),
            loaded.metadata,
        )
        decoder, answers = Decoder(loaded.model, plan), {}
        for batch_size in (1, 8):
            found = {}
            for positions, output in generate_all(
                decoder,
                prompts,
                DecodeContext(config.decoding, work.pad_token_id),
                BatchSize(batch_size),
            ):
                found |= dict(zip(positions, output.token_ids, strict=True))
            answers[batch_size] = found
        gaps = []
        for i, prompt in enumerate(prompts):
            one, eight = answers[1][i], answers[8][i]
            if one != eight:
                position = next(
                    k
                    for k in range(max(len(one), len(eight)))
                    if one[k : k + 1] != eight[k : k + 1]
                )
                gaps.append(gap_at(decoder, prompt, one, position))
        near = sum(gap < NEAR_TIE for gap in gaps)
        counts[strategy] = {
            "examples": len(prompts),
            "different": len(gaps),
            "near_ties": near,
            "gaps": gaps,
        }
        print(
            f"{strategy}: {len(prompts)} prompts, {len(gaps)} differ between batch 1 and 8, {near}"
            " of them near-ties"
        )
    out = Path(__file__).parent / "results" / f"batch-invariance-{args.model}.json"
    out.parent.mkdir(exist_ok=True)
    facts = {**environment.code(), **environment.machine()}
    out.write_text(
        json.dumps({"counts": counts, "near_tie": NEAR_TIE, "environment": facts}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
