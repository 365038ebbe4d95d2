"""How good the answers of a point are."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback, ReportProgress
from ulskip_cli.experiments.batch_checkpoints import BatchCheckpoints
from ulskip_cli.experiments.results import Row
from ulskip_cli.experiments.throughput import draft_statistics, exit_statistics, throughput
from ulskip_cli.experiments.workload import Workload, prompt_batches
from ulskip_cli.inference import linear_kernel
from ulskip_cli.inference.batching import BatchSize, run_with_oom_retry
from ulskip_cli.inference.decoder import Decoder, generate_all, longest_first, until_stop
from ulskip_cli.inference.engines.base import BatchOutput
from ulskip_cli.inference.peak_memory import PeakMemory
from ulskip_cli.inference.scoring import ReferenceLoss
from ulskip_cli.tasks import Task, metrics
from ulskip_cli.tasks.example import Example
from ulskip_cli.tasks.metrics import degenerate
from ulskip_cli.tasks.metrics.scores import Answers

MEAN_MAY_MISS = 0.05  # what the mean depth on other examples than the calibrated ones may be off


@dataclass(frozen=True)
class Evaluation:
    """Row keys of quality, and what was generated for every example."""

    row: Row
    generations: list[Row]


def evaluate(
    decoder: Decoder,
    work: Workload,
    config: Config,
    full_hypotheses: list[str] | None,
    progress: ProgressCallback,
    keep: Callable[[list[Row]], None] = lambda generations: None,
    judge: Decoder | None = None,
    partial: BatchCheckpoints | None = None,
) -> Evaluation:
    """Generate an answer to every example and score them; nothing where there is no tokenizer.

    Args:
        decoder: the model under a schedule.
        work: what to answer.
        config: decoding and batch size.
        full_hypotheses: the full model's answers, to compare with.
        progress: who watches.
        keep: takes what was generated before it is scored, which may fail.
        judge: whose loss is meant, where what drafts is not what decides.
        partial: keeps every batch as it comes, and those that an earlier attempt finished.
    """
    if work.encoded is None or work.task is None:
        return Evaluation({}, [])
    name, examples, task = config.strategy["name"], work.examples, work.task
    if full_hypotheses is not None and len(full_hypotheses) != len(examples):
        raise RunError(
            f"expected {len(examples)} stored answers of the full model, found {len(full_hypotheses)}; use another name="
        )
    size = BatchSize(config.batch_size)

    def warm_up(count: int) -> None:
        (batch,) = prompt_batches(work.prompts, work.pad, count, 1)
        decoder.generate(*batch, config.decoding, work.pad, forced_length=2)

    progress.phase(f"{name}: warm up", 0)
    run_with_oom_retry(size, warm_up)
    rows: list[Row] = [{} for _ in examples]
    outputs: list[BatchOutput] = []

    def take(positions: Sequence[int], output: BatchOutput) -> None:
        outputs.append(output)
        for position, ids, hit in zip(positions, output.token_ids, output.hit_limit, strict=True):
            rows[position] = _generation(decoder, task, examples[position], ids, hit, config.decoding.stop)

    kept = partial.batches(longest_first(work.prompts)) if partial else []
    for batch in kept:
        take(batch.positions, batch.output)
    if kept:
        size.used = kept[-1].batch_size
    skip = sum(len(batch.positions) for batch in kept)
    before = f", {skip} of them before" if skip else ""
    told = _rate(progress.phase(f"{name}: generate{before}", len(examples)))
    with PeakMemory(decoder.device) as memory:
        for positions, output in generate_all(decoder, work.prompts, config.decoding, size, work.pad, config.seed, told, skip):
            take(positions, output)
            if partial:
                partial.add(positions, output, size.used, memory.so_far())
    progress.phase(f"{name}: metrics", 0)
    keep(rows)
    answers = Answers(
        [row["hypothesis"] for row in rows],
        [example.reference for example in examples],
        [example.source for example in examples],
        full_hypotheses,
    )
    scores = metrics.score(task.scoring(), answers)
    scored = progress.phase(f"{name}: decode loss", len(examples))
    references = ReferenceLoss(work.encoded, size, work.pad)
    loss = references.of(judge or decoder, scored)
    if not math.isfinite(loss):
        if partial:
            partial.remove()
        raise RunError(
            f"the model's logits are not numbers (decode loss {loss}); look at its weights, or try another model.dtype"
        )
    flagged = Counter(flag for row in rows for flag in row["flags"])
    row = {
        **scores.values,
        "decode_loss": loss,
        **({"decode_loss_mean_kept_layers": depth} if (depth := references.exits.mean_depth) is not None else {}),
        "signatures": scores.signatures,
        "against_full": scores.against_full,
        "degenerate": {flag: flagged[flag] for flag in ("empty", "loop", "hit_limit")},
        "length_ratio": degenerate.length_ratio(answers.hypotheses, answers.references),
        "sources_cut": work.cut,
        "evaluated_batch_size": size.used,
        "peak_memory_bytes": max([memory.peak_bytes, *(batch.peak_memory_bytes for batch in kept)]),
        **throughput(outputs, "evaluation"),
        **draft_statistics(outputs),
        **exit_statistics(outputs),
    }
    return Evaluation(row, rows)


def adjustments(row: Row) -> list[str]:
    """What was done differently from what was asked, in a line each."""
    asked, lines = row["batch_size"], []
    if row.get("sources_cut"):
        lines.append(f"{row['sources_cut']} of {row['num_examples']} sources lost their end to fit into the model's context")
    for key, what in (("evaluated_batch_size", "evaluated"), ("timed_batch_size", "timed")):
        if row.get(key, asked) < asked:
            lines.append(f"{row['strategy']}: batches of {asked} did not fit into memory; {what} in batches of {row[key]}")
    if (failure := linear_kernel.build_failure()) and failure == row.get("linear_backend_reason"):
        lines.append(
            f"the kernel for decoding on a CPU was not built ({failure}); linear_backend={row['linear_backend']} served"
        )
    target, mean = row.get("target_kept_layers"), row.get("evaluated_mean_kept_layers")
    if target and mean and row["ratio_basis"] != "latency" and abs(mean - target) > MEAN_MAY_MISS * target:
        lines.append(f"{row['strategy']}: {mean:.2f} layers ran on average, {target} were aimed at{_why_off(row)}")
    return lines


def _why_off(row: Row) -> str:
    """What may make the depth on the evaluated answers another than on those held out."""
    few = (row.get("calibration") or {}).get("examples", row["batch_size"])
    if row.get("exit_depths") and few < row["batch_size"]:
        return f"; its {few} held-out examples fill no batch of {row['batch_size']}, raise calibration.examples"
    return "" if row.get("exit_depths") else ", since its answers are of other lengths than those that its horizon is for"


def _generation(decoder: Decoder, task: Task, example: Example, ids: list[int], hit: bool, stops: Sequence[str]) -> Row:
    """What is stored of one answer."""
    assert decoder.tokenizer is not None
    text, stopped = until_stop(decoder.tokenizer.decode(ids, skip_special_tokens=True), stops)
    return {
        "id": example.id,
        "source": example.source,
        "reference": example.reference,
        "hypothesis": task.hypothesis(text),
        "output": text,
        "token_ids": ids,
        "flags": degenerate.flags(ids, text, hit and not stopped),
    }


def _rate(tell: ReportProgress) -> Any:
    """Tell prompts done, with tokens/s beside them."""
    began = time.monotonic()
    return lambda done, tokens: tell(done, f"{tokens / max(1e-9, time.monotonic() - began):,.0f} tok/s")
