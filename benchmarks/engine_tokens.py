"""Count the sequences whose greedy tokens in float32 equal those of the torch engine, for every
other engine.

    python benchmarks/engine_tokens.py [--data PATH/cnn_dm] [--models tiny,smollm2-135m]

PATH contains validation.jsonl.gz; without it, SmolLM2 gets the bundled articles. A sequence that
differs is a near-tie if the torch engine's best two logits are closer than NEAR_TIE at the first
difference, so that rounding decides.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ulskip_cli.core import environment
from ulskip_cli.core.answer import Ends, Request
from ulskip_cli.core.config import compose
from ulskip_cli.core.engines import engine_named, engine_names
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import write_atomic
from ulskip_cli.engines.base import Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.scoring import given_logits
from ulskip_cli.experiments.evaluate import encode_examples
from ulskip_cli.experiments.point import resolve
from ulskip_cli.experiments.record import Environment
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.inference.teacher_forcing import encode_prompt
from ulskip_cli.report.tables import markdown_table
from ulskip_cli.strategies.plan import Plan, make_plan

RESULTS = Path(__file__).parent / "results"
NEW_TOKENS, NEAR_TIE, BATCH = 32, 1e-3, 10
ENGINES = [name for name in engine_names() if name not in ("auto", "torch")]
PROMPTS = {"tiny": 100, "smollm2-135m": 20}
TASKS = {"tiny": ["task=wmt"], "smollm2-135m": ["task=cnn_dm", "task.max_article_words=100"]}
STAGES = ["ratio=2", "strategy=skip_decode", "strategy.horizon=16"]
SCHEDULES = [["strategy=full"], ["ratio=2"], ["ratio=2", "prompt_layers=kept"], STAGES]


@dataclass
class Count:
    """Sequences of one engine and schedule by how they compare with the torch engine's."""

    model: str
    layers: str
    prompt_layers: str
    engine: str
    sequences: int
    equal: int = 0
    near_ties: int = 0
    largest_gap: float = 0.0  # of the torch engine's best two logits at a first difference


def top_gap(decoder: Decoder, prompt: list[int], answer: list[int]) -> float:
    """Return the gap between the torch engine's best two logits for the token after `answer`, with
    which the answer to a prompt begins.
    """
    # The logits of a response predict its own tokens, so any token stands for the next one.
    ids, response = torch.tensor([prompt]), torch.tensor([[*answer, 0]])
    with torch.inference_mode():
        encoded = encode_prompt(decoder.views.prompt_model, ids, torch.ones_like(ids))
        logits, _ = given_logits(decoder.views, encoded, response, torch.ones_like(response))
    next_logits: Tensor = logits[0, -1]
    first, second = next_logits.topk(2).values.tolist()
    return float(first - second)


def tokens(decoder: Decoder, prompts: list[list[int]], request: Request) -> list[list[int]]:
    """Return the answers in the order of the prompts."""
    answers: dict[int, list[int]] = {}  # by position, because batches are ordered by length
    for positions, output in decoder.answer_all(prompts, request, BatchSize(BATCH)):
        answers |= dict(zip(positions, output.token_ids, strict=True))
    return [answers[i] for i in range(len(prompts))]


def described(plan: Plan) -> str:
    """Return the depth of a plan, e.g. 15/30, or 15 then 14/30."""
    return (
        f"{' then '.join(str(len(stage.kept_layers)) for stage in plan.stages)}/{plan.num_layers}"
    )


def count_model(name: str, data: Path | None, builds: dict[str, dict[str, object]]) -> list[Count]:
    """Compare all engines on one model under SCHEDULES; engines that cannot run a schedule are left
    out. `builds` gets what each engine says of its library: `package`, `version` and `build`.
    """
    task = [
        *TASKS[name],
        *([f"task.file={data}/validation.jsonl.gz"] if data and name != "tiny" else []),
    ]
    base = [
        f"model={name}",
        "model.dtype=float32",
        f"limit={PROMPTS[name]}",
        f"max_new_tokens={NEW_TOKENS}",
        *task,
    ]
    config = compose(base)
    loaded = load(config.model)
    point = resolve(config)
    workload = encode_examples(point.data, point, load_tokenizer(config.model))
    ends = Ends.of(loaded.model, workload.pad_token_id)
    request, rows = Request(config.decoding, NEW_TOKENS, ends=ends), []
    for schedule in SCHEDULES:
        chosen = compose([*base, *schedule])
        plan = make_plan(chosen, loaded.metadata)
        views = Views.of(loaded.model, plan)
        reference = Decoder(views, engine_named("torch"))
        expected = tokens(reference, workload.prompts, request)
        for engine in ENGINES:
            try:
                make_plan(compose([*base, *schedule, f"engine={engine}"]), loaded.metadata)
            except UsageError as reason:
                print(f"left out: {reason}", flush=True)
                continue
            decoder = Decoder(views, engine_named(engine))
            got = tokens(decoder, workload.prompts, request)
            row = Count(name, described(plan), plan.prompt_layers, engine, len(got))
            for prompt, ours, theirs in zip(workload.prompts, expected, got, strict=True):
                if ours == theirs:
                    row.equal += 1
                    continue
                first_difference = next(
                    i
                    for i, (token, other) in enumerate(zip(ours, theirs, strict=False))
                    if token != other
                )
                gap = top_gap(reference, prompt, ours[:first_difference])
                row.near_ties += gap < NEAR_TIE
                row.largest_gap = max(row.largest_gap, gap)
            print(row, flush=True)
            rows.append(row)
            if decoder.build:
                builds[engine] = decoder.build
    return rows


def page(rows: list[Count], builds: dict[str, dict[str, object]], facts: dict[str, Any]) -> str:
    """Return the page of all counts; `facts` describe the code and the machine."""
    title = f"# Tokens of every engine beside the torch engine's, float32, {NEW_TOKENS} new tokens"
    heads = ["model", "layers", "prompt", "engine"]
    heads += ["sequences", "equal", "near-ties", "different", "largest gap"]
    lines = []
    for row in rows:
        gap = f"{row.largest_gap:.1e}" if row.equal < row.sequences else "–"
        other = row.sequences - row.equal - row.near_ties
        counts = map(str, (row.sequences, row.equal, row.near_ties, other))
        lines.append([row.model, row.layers, row.prompt_layers, row.engine, *counts, gap])
    versions = [
        f"{build['package']} {build['version']} ({', '.join(map(str, build['build']))})"
        for build in builds.values()
    ]
    note = (
        "Prompt: all layers encode the prompt, or the kept ones alone. Near-ties: sequences"
        " whose first difference is at a token where the best two logits of torch are closer"
        f" than {NEAR_TIE:g}; largest gap: the largest such distance at a first difference."
        " Prompts of tiny: German sentences of the bundled sample; of smollm2-135m: 100 words"
        " of CNN/DM articles."
    )
    here = Environment(**facts)
    last = f"ulskip {here.version}, {here.processor}, {'; '.join(versions)}."
    return "\n\n".join([title, markdown_table(heads, lines, 4), note, last]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", default=",".join(PROMPTS))
    args = parser.parse_args()
    facts = {
        **environment.versions(),
        **environment.machine(),
    }  # at the beginning, because a checkout can change during the run
    rows: list[Count] = []
    builds: dict[str, dict[str, object]] = {}
    for name in args.models.split(","):
        rows += count_model(name, args.data, builds)
    text = page(rows, builds, facts)
    print(text)
    write_atomic(RESULTS / "engine-tokens.md", text)
    stored = {"rows": [vars(row) for row in rows], "builds": builds, "environment": facts}
    write_atomic(RESULTS / "engine-tokens.json", json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
