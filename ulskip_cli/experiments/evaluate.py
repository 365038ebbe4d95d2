"""Decode the answers of a point (`generate_answers`) and score them (`score_answers`)."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.decoder import (
    DecodeContext,
    Decoder,
    generate_all,
    longest_first,
    until_stop,
)
from ulskip_cli.engines.sampling import InvalidLogitsError
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.experiments.batch_checkpoints import BatchCheckpoints
from ulskip_cli.experiments.record import Compared, Quality, Row
from ulskip_cli.experiments.workload import Workload, prompt_batches
from ulskip_cli.inference import peak_memory
from ulskip_cli.inference.batching import BatchSize, run_with_oom_retry
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics import degenerate
from ulskip_cli.tasks.metrics.scores import Answers


@dataclass(frozen=True)
class GeneratedAnswers:
    """The generated answers of a point, with decoder outputs and peak memory."""

    strategy: str
    generations: list[Row]  # one JSON object per example, in the task's order
    outputs: list[BatchOutput]  # one per batch, with its timings
    batch_size: BatchSize  # the size that fitted into memory
    peak_memory_bytes: int


def generate_answers(
    decoder: Decoder,
    workload: Workload,
    config: Config,
    progress: ProgressCallback,
    checkpoints: BatchCheckpoints | None = None,
) -> GeneratedAnswers:
    """Generate an answer to every example, longest prompts first. Batches stored in `checkpoints`
    are not decoded again.
    """
    name, size = config.strategy.name, BatchSize(config.batch_size)
    context = DecodeContext(config.decoding, workload.pad_token_id, config.seed)

    def warm_up(count: int) -> float:
        (batch,) = prompt_batches(workload.prompts, workload.pad_token_id, count, 1)
        return decoder.generate(*batch, context, forced_length=2).compile_seconds

    progress.phase(f"{name}: warm up", 0)
    compile_seconds = run_with_oom_retry(size, warm_up)
    finished = checkpoints.batches(longest_first(workload.prompts)) if checkpoints else []
    batches = [(batch.positions, batch.output) for batch in finished]
    if finished:
        size.used = finished[-1].batch_size
    num_finished = sum(len(batch.positions) for batch in finished)
    resumed = f", {num_finished} resumed" if num_finished else ""
    report = progress.phase(f"{name}: generate{resumed}", len(workload.examples))
    began = time.monotonic()

    def on_tokens(done: int, tokens: int) -> None:
        report(done, f"{tokens / max(1e-9, time.monotonic() - began):,.0f} tok/s")

    peak_memory.reset(decoder.device)
    for positions, output in generate_all(
        decoder, workload.prompts, context, size, on_tokens, num_finished
    ):
        batches.append((list(positions), output))
        if checkpoints:
            checkpoints.add(positions, output, size.used, peak_memory.peak_bytes(decoder.device))
    generations = {
        position: _generation(decoder, workload, config, position, output, i)
        for positions, output in batches
        for i, position in enumerate(positions)
    }
    first, *others = (output for _, output in batches)
    first = replace(first, compile_seconds=first.compile_seconds + compile_seconds)
    peaks = [batch.peak_memory_bytes for batch in finished]
    return GeneratedAnswers(
        name,
        [generations[position] for position in range(len(generations))],
        [first, *others],
        size,
        max(peak_memory.peak_bytes(decoder.device), *peaks, 0),
    )


def _generation(
    decoder: Decoder, workload: Workload, config: Config, position: int, output: BatchOutput, i: int
) -> Row:
    """Return the stored generation of an example, which is the i-th of its batch."""
    assert decoder.tokenizer is not None
    assert workload.task is not None
    example, token_ids = workload.examples[position], output.token_ids[i]
    text, stopped = until_stop(
        decoder.tokenizer.decode(token_ids, skip_special_tokens=True), config.decoding.stop
    )
    return {
        "id": example.id,
        "source": example.source,
        "reference": example.reference,
        "hypothesis": workload.task.hypothesis(text),
        "output": text,
        "token_ids": token_ids,
        "flags": degenerate.flags(token_ids, text, output.hit_max_length[i] and not stopped),
    }


def score_answers(
    answers: GeneratedAnswers,
    workload: Workload,
    scoring_decoder: Decoder,
    baseline_hypotheses: Sequence[str] | None,
    progress: ProgressCallback,
) -> Quality:
    """Score answers by the task's metrics, and measure the decode loss of the references.

    `scoring_decoder` measures the loss; with drafts it is the full model, because that decides the
    tokens. Raises InvalidLogitsError if the loss is not finite, and RunError if the baseline has
    another number of answers.
    """
    assert workload.encoded is not None
    assert workload.task is not None
    examples = workload.examples
    if baseline_hypotheses is not None and len(baseline_hypotheses) != len(examples):
        raise RunError(
            f"expected {len(examples)} stored answers of the baseline, got"
            f" {len(baseline_hypotheses)}; set another name=NAME to run the baseline again in a new"
            " results folder"
        )
    progress.phase(f"{answers.strategy}: metrics", 0)
    hypotheses = [generation["hypothesis"] for generation in answers.generations]
    references = [example.reference for example in examples]
    sources = [example.source for example in examples]
    baseline = None if baseline_hypotheses is None else list(baseline_hypotheses)
    scores = metrics.score(
        workload.task.scoring(), Answers(hypotheses, references, sources, baseline)
    )
    reference_loss = ReferenceLoss(workload.encoded, answers.batch_size, workload.pad_token_id)
    loss = reference_loss.of(
        scoring_decoder, progress.phase(f"{answers.strategy}: decode loss", len(examples))
    )
    if not math.isfinite(loss):
        raise InvalidLogitsError(f"a decode loss of {loss}")
    flags = Counter(flag for generation in answers.generations for flag in generation["flags"])
    return Quality(
        **scores.values,
        decode_loss=loss,
        decode_loss_mean_kept_layers=reference_loss.exits.mean_depth,
        signatures=dict(scores.signatures),
        vs_baseline={key: Compared(**values) for key, values in scores.against_full.items()},
        degenerate={flag: flags[flag] for flag in ("empty", "loop", "hit_limit")},
        length_ratio=degenerate.length_ratio(hypotheses, references),
        num_truncated_sources=workload.num_truncated,
        num_truncated_references=workload.num_truncated_references,
        evaluated_batch_size=answers.batch_size.used,
        peak_memory_bytes=answers.peak_memory_bytes,
    )
