"""The two measurements of a point: how good its answers are, and how fast they come."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli import metrics
from ulskip_cli.errors import RunError, UsageError
from ulskip_cli.exits import MISSING_KV
from ulskip_cli.generation.batches import BatchSize, fitting
from ulskip_cli.generation.decode import Decoder, generate_all, longest_first, until_stop
from ulskip_cli.generation.encoding import Encoded, Phrasing, encode, pad_id, padded
from ulskip_cli.generation.loss import decode_loss
from ulskip_cli.generation.output import BatchOutput, Drafts, Exits
from ulskip_cli.generation.pairs import PairedSpeed, measure_pairs
from ulskip_cli.memory import PeakMemory
from ulskip_cli.metrics import degenerate
from ulskip_cli.metrics.scores import Answers
from ulskip_cli.partial import Partial
from ulskip_cli.progress import Progress, Tell
from ulskip_cli.results import Row
from ulskip_cli.schema import Config
from ulskip_cli.tasks import Task
from ulskip_cli.tasks.examples import Example

MEAN_MAY_MISS = 0.05  # what the mean depth on other examples than the calibrated ones may be off

Batch = tuple[Tensor, Tensor]  # input_ids and attention_mask, each [batch, prompt_len]


@dataclass(frozen=True)
class Workload:
    """A task's examples as one model reads them; without a task, random prompts to time.

    Attributes:
        task: makes prompts and scores answers; None for a bench.
        examples: in the task's order.
        encoded: their token ids, in the same order; None for random weights, whose answers mean nothing.
        pad: padding id.
        chat: whether the prompts are in the model's chat format; None where there are none.
        context: positions that the model has, of which timed pairs leave a prompt what they do not need; None: no limit.
    """

    task: Task | None
    examples: Sequence[Example]
    encoded: list[Encoded] | None
    pad: int
    chat: bool | None
    context: int | None = None

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of every prompt."""
        return [one.prompt_ids for one in self.encoded or []]

    @property
    def cut(self) -> int:
        """How many sources lost their end."""
        return sum(one.cut for one in self.encoded or [])


@dataclass(frozen=True)
class Evaluation:
    """Row keys of quality, and what was generated for every example."""

    row: Row
    generations: list[Row]


def prepare(
    tokenizer: PreTrainedTokenizerBase | None, context: int | None, task: Task, examples: Sequence[Example], config: Config
) -> Workload:
    """Phrase the examples for a model and fit them into its context; needs no weights.

    Args:
        tokenizer: the model's; None for random weights.
        context: positions that the model has; None: no limit.
        task: makes prompts and scores answers.
        examples: in the task's order.
        config: how much is generated after each.

    Raises:
        UsageError: the context is too short.
    """
    if tokenizer is None:
        return Workload(task, examples, None, 0, None)
    phrasing = Phrasing.of(task, tokenizer, config.model.chat_options)
    encoded = encode(phrasing, tokenizer, examples, context, config.decoding.max_new_tokens, task.cuts_source)
    room = None if context is None else context - config.speed.new_tokens
    if config.speed.enabled and room is not None and room < 1:
        raise UsageError(f"expected speed.new_tokens below the model's context of {context}, got {config.speed.new_tokens}")
    return Workload(task, examples, encoded, pad_id(tokenizer), phrasing.template.chat, context)


def evaluate(
    decoder: Decoder,
    work: Workload,
    config: Config,
    full_hypotheses: list[str] | None,
    progress: Progress,
    keep: Callable[[list[Row]], None] = lambda generations: None,
    judge: Decoder | None = None,
    partial: Partial | None = None,
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
    fitting(size, warm_up)
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
    told = _rate(progress.phase(f"{name}: generate", len(examples)))
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
    loss = decode_loss(judge or decoder, work.encoded, size, work.pad, scored)
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
        "signatures": scores.signatures,
        "against_full": scores.against_full,
        "degenerate": {flag: flagged[flag] for flag in ("empty", "loop", "hit_limit")},
        "length_ratio": degenerate.length_ratio(answers.hypotheses, answers.references),
        "sources_cut": work.cut,
        "evaluated_batch_size": size.used,
        "peak_memory_bytes": max([memory.peak_bytes, *(batch.peak_memory_bytes for batch in kept)]),
        **throughput(outputs, "evaluation"),
        **drafting(outputs),
        **exiting(outputs),
    }
    return Evaluation(row, rows)


def measure_speed(full: Decoder, strategy: Decoder, work: Workload, config: Config, progress: Progress) -> Row:
    """Time full and strategy in pairs; row keys of speed."""
    size = BatchSize(config.batch_size)
    pairs = time_pairs(full, strategy, work, size, config, progress)
    row = speed_row(pairs, size)
    if work.encoded is None:
        row |= {**throughput(pairs.strategy, "timed pairs"), **drafting(pairs.strategy), **exiting(pairs.strategy)}
    return row


def time_pairs(
    full: Decoder, strategy: Decoder, work: Workload, size: BatchSize, config: Config, progress: Progress
) -> PairedSpeed:
    """Time full and strategy in pairs. A batch that does not fit into memory is halved, and `size` with it."""
    total = config.speed.warmup + config.speed.pairs

    def measured(count: int) -> PairedSpeed:
        prompts = timed_prompts(work, count, total, full.model, config)
        timed = progress.phase(f"{config.strategy['name']}: timed pairs", total)
        return measure_pairs(full, strategy, prompts, config.decoding, config.speed, work.pad, timed)

    return fitting(size, measured)


def speed_row(pairs: PairedSpeed, size: BatchSize) -> Row:
    """Row keys of timed pairs."""
    timed = pairs.strategy
    return {
        **pairs.row(),
        "timed_batch_size": size.used,
        "prefill_seconds": median(output.prefill_seconds for output in timed),
        "time_to_first_token_seconds": median(output.first_token_seconds for output in timed),
        "time_per_output_token_seconds": median(output.step_seconds for output in timed),
        "prompt_kv_bytes": max(output.prompt_kv_bytes for output in timed),
        "kept_kv_bytes": max(output.kept_kv_bytes for output in timed),
    }


def timed_prompts(work: Workload, batch_size: int, count: int, model: PreTrainedModel, config: Config) -> list[Batch]:
    """Batches for timing: the task's prompts, or random ones for weights without a tokenizer."""
    if work.encoded is None:
        return _random_prompts(model, (batch_size, config.speed.prompt_tokens), count, config.seed)
    room = None if work.context is None else max(1, work.context - config.speed.new_tokens)
    ends = [prompt if room is None else prompt[-room:] for prompt in work.prompts]
    return prompt_batches(ends, work.pad, batch_size, count)


def prompt_batches(prompts: Sequence[list[int]], pad: int, batch_size: int, count: int) -> list[Batch]:
    """`count` batches of the task's own prompts, all of `batch_size`, the prompts used in turn."""
    starts = range(0, count * batch_size, batch_size)
    return [padded([prompts[i % len(prompts)] for i in range(at, at + batch_size)], pad, left=True) for at in starts]


def adjustments(row: Row) -> list[str]:
    """What was done differently from what was asked, in a line each."""
    asked, lines = row["batch_size"], []
    if row.get("sources_cut"):
        lines.append(f"{row['sources_cut']} of {row['num_examples']} sources lost their end to fit into the model's context")
    for key, what in (("evaluated_batch_size", "evaluated"), ("timed_batch_size", "timed")):
        if row.get(key, asked) < asked:
            lines.append(f"{row['strategy']}: batches of {asked} did not fit into memory; {what} in batches of {row[key]}")
    if row.get("exit_depths"):
        target, mean = row["target_kept_layers"], row["mean_kept_layers"]
        if abs(mean - target) > MEAN_MAY_MISS * target:
            lines.append(f"{row['strategy']}: {mean:.2f} layers ran on average, {target} were aimed at")
    return lines


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


def _rate(tell: Tell) -> Any:
    """Tell prompts done, with tokens/s beside them."""
    began = time.monotonic()
    return lambda done, tokens: tell(done, f"{tokens / max(1e-9, time.monotonic() - began):,.0f} tok/s")


def _random_prompts(model: PreTrainedModel, shape: tuple[int, int], count: int, seed: int) -> list[Batch]:
    """Random prompts, each batch of `shape`, [batch, prompt_len]."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    ids = [torch.randint(vocab_size, shape, generator=generator) for _ in range(count)]
    return [(batch, torch.ones_like(batch)) for batch in ids]


def throughput(outputs: Sequence[BatchOutput], source: str) -> dict[str, Any]:
    """Both tokens/s conventions over all outputs; padding and ids after an end token count in neither.

    `decode_tokens_per_second`: ids after each sequence's first, over decode time. `total_tokens_per_second`:
    prompt and generated ids over prefill and decode time, as the paper counts.
    """
    prompt_tokens = sum(output.prompt_tokens for output in outputs)
    generated = sum(output.generated_tokens for output in outputs)
    decode_seconds = sum(output.decode_seconds for output in outputs)
    return {
        "decode_tokens_per_second": sum(output.decoded_tokens for output in outputs) / decode_seconds,
        "total_tokens_per_second": (prompt_tokens + generated) / sum(output.total_seconds for output in outputs),
        "throughput_from": source,
        "compile_seconds": sum(output.compile_seconds for output in outputs),
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generated,
        "decode_seconds": decode_seconds,
        "total_seconds": sum(output.total_seconds for output in outputs),
    }


def drafting(outputs: Sequence[BatchOutput]) -> dict[str, Any]:
    """How drafting went over all outputs; nothing where nothing was drafted."""
    total = sum((output.drafts for output in outputs if output.drafts), Drafts())
    if not total.drafted:
        return {}
    return {
        "acceptance_rate": total.accepted / total.drafted,
        "mean_accepted_length": total.gained / total.passes,
    }


def exiting(outputs: Sequence[BatchOutput]) -> dict[str, Any]:
    """Where tokens left the layers, over all outputs; nothing where they could not."""
    total = sum((output.exits for output in outputs if output.exits), Exits())
    if total.mean_depth is None:
        return {}
    return {
        "exit_depths": {str(depth): count for depth, count in total.depths.items()},
        "mean_kept_layers": total.mean_depth,
        "evaluated_mean_kept_layers": total.mean_depth,
        "head_share": total.check_seconds / sum(output.decode_seconds for output in outputs),
        "missing_kv": MISSING_KV,
    }
