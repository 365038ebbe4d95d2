"""The two measurements of a point: how good its answers are, and how fast they come."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ulskip_cli.errors import RunError
from ulskip_cli.generation.decode import BatchOutput, Decoder, generate_texts
from ulskip_cli.generation.encoding import encode_prompts, pad_id
from ulskip_cli.generation.loss import decode_loss
from ulskip_cli.generation.pairs import measure_pairs
from ulskip_cli.memory import PeakMemory
from ulskip_cli.metrics import degenerate
from ulskip_cli.progress import Progress
from ulskip_cli.results import Row
from ulskip_cli.schema import Config
from ulskip_cli.tasks import Task
from ulskip_cli.tasks.examples import Example


@dataclass(frozen=True)
class Evaluation:
    """Row keys of quality, and what was generated for every example."""

    row: Row
    generations: list[Row]


def evaluate(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase | None,
    task: Task,
    examples: Sequence[Example],
    config: Config,
    full_hypotheses: list[str] | None,
    progress: Progress,
) -> Evaluation:
    """Generate an answer to every example and score them; nothing where there is no tokenizer.

    Args:
        decoder: the model under a schedule.
        tokenizer: None for random weights, whose answers mean nothing.
        task: makes prompts and scores answers.
        examples: what to answer.
        config: decoding and batch size.
        full_hypotheses: the full model's answers, to compare with.
        progress: who watches.
    """
    if tokenizer is None:
        return Evaluation({}, [])
    prompts = [task.prompt_for(example) for example in examples]
    name = config.strategy["name"]
    answered = progress.phase(f"{name}: generate", len(examples))
    warm_up = prompt_batches(tokenizer, task, examples, config.batch_size, 1)[0]
    decoder.generate(*warm_up, config.decoding, pad_id(tokenizer), forced_length=2)
    rows: list[Row] = [{} for _ in examples]
    outputs: list[BatchOutput] = []
    with PeakMemory(decoder.device) as memory:
        for positions, output in generate_texts(decoder, tokenizer, prompts, config.decoding, config.batch_size, answered):
            outputs.append(output)
            for position, ids, hit in zip(positions, output.token_ids, output.hit_limit, strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True)
                example = examples[position]
                rows[position] = {
                    "id": example.id,
                    "source": example.source,
                    "reference": example.reference,
                    "hypothesis": task.hypothesis(text),
                    "output": text,
                    "token_ids": ids,
                    "flags": degenerate.flags(ids, text, hit),
                }
    if full_hypotheses is not None and len(full_hypotheses) != len(examples):
        raise RunError(
            f"expected {len(examples)} stored answers of the full model, found {len(full_hypotheses)}; use another name="
        )
    hypotheses, references = [row["hypothesis"] for row in rows], [example.reference for example in examples]
    scores = task.score(hypotheses, references, full_hypotheses)
    pairs = [(prompt, task.response_for(example)) for prompt, example in zip(prompts, examples, strict=True)]
    scored = progress.phase(f"{name}: decode loss", len(examples))
    flagged = Counter(flag for row in rows for flag in row["flags"])
    row = {
        **scores.values,
        "decode_loss": decode_loss(decoder, tokenizer, pairs, config.batch_size, scored),
        "signatures": scores.signatures,
        "against_full": scores.against_full,
        "degenerate": {flag: flagged[flag] for flag in ("empty", "loop", "hit_limit")},
        "length_ratio": degenerate.length_ratio(hypotheses, references),
        "peak_memory_bytes": memory.peak_bytes,
        **throughput(outputs, "evaluation"),
    }
    return Evaluation(row, rows)


def measure_speed(
    full: Decoder,
    strategy: Decoder,
    tokenizer: PreTrainedTokenizerBase | None,
    task: Task,
    examples: Sequence[Example],
    config: Config,
    progress: Progress,
) -> Row:
    """Time full and strategy in pairs; row keys of speed."""
    speed = config.speed
    total = speed.warmup + speed.pairs
    if tokenizer is None:
        generator = torch.Generator().manual_seed(config.seed)
        vocab_size = full.model.config.get_text_config(decoder=True).vocab_size
        shape = (config.batch_size, speed.prompt_tokens)
        ids = [torch.randint(vocab_size, shape, generator=generator) for _ in range(total)]
        prompts, pad = [(batch, torch.ones_like(batch)) for batch in ids], 0
    else:
        prompts, pad = prompt_batches(tokenizer, task, examples, config.batch_size, total), pad_id(tokenizer)
    timed = progress.phase(f"{config.strategy['name']}: timed pairs", total)
    pairs = measure_pairs(full, strategy, prompts, config.decoding, speed, pad, timed)
    steps = speed.new_tokens - 1
    row = {
        **pairs.row(),
        "prefill_seconds": median(output.prefill_seconds for output in pairs.strategy),
        "time_to_first_token_seconds": median(output.first_token_seconds for output in pairs.strategy),
        "time_per_output_token_seconds": median(output.decode_seconds / steps for output in pairs.strategy),
        "prompt_kv_bytes": max(output.prompt_kv_bytes for output in pairs.strategy),
        "kept_kv_bytes": max(output.kept_kv_bytes for output in pairs.strategy),
    }
    return row if tokenizer else {**row, **throughput(pairs.strategy, "timed pairs")}


def prompt_batches(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], batch_size: int, count: int
) -> list[tuple[Tensor, Tensor]]:
    """`count` batches of the task's own prompts, all of `batch_size`, the examples used in turn."""
    texts = [task.prompt_for(example) for example in examples]
    batches = []
    for start in range(0, count * batch_size, batch_size):
        batches.append(encode_prompts(tokenizer, [texts[i % len(texts)] for i in range(start, start + batch_size)]))
    return batches


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
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generated,
        "decode_seconds": decode_seconds,
        "total_seconds": sum(output.total_seconds for output in outputs),
    }
