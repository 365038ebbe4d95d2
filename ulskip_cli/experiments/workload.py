"""Encode a task's examples as token ids of one model, and make batches of them for timing."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.answer import Answer
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Example, Task
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.decoder import DecodeContext, until_stop
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.inference.batching import padded
from ulskip_cli.tasks.encoding import EncodedExample, PromptFormatter, pad_token_id

Batch = tuple[Tensor, Tensor]  # input_ids and attention_mask, each [batch, prompt_len]


@dataclass(frozen=True)
class Workload:
    """A task's examples as token ids of one model."""

    task: Task
    examples: Sequence[Example]
    encoded: list[EncodedExample]
    formatter: PromptFormatter  # that encoded them
    max_positions: int | None  # None without a limit; timed prompts leave room for the new tokens

    @property
    def pad_token_id(self) -> int:
        """The token that pads prompts and answers."""
        return pad_token_id(self.formatter.tokenizer)

    @property
    def prompts(self) -> list[list[int]]:
        """The token ids of every prompt."""
        return [example.prompt_ids for example in self.encoded]


def encode_workload(
    point: ResolvedPoint, tokenizer: PreTrainedTokenizerBase | None
) -> Workload | None:
    """Encode a point's examples within the model's context, without weights; raise UsageError if
    the context is too short. Without a task (a benchmark) or a tokenizer (random weights) return
    None, which stands for random prompts.
    """
    data, config, max_positions = point.data, point.config, point.files.metadata.context
    if tokenizer is None or data is None:
        return None
    task, examples = data.task, data.examples
    formatter = PromptFormatter.for_task(task, tokenizer, config.model.chat_options)
    new_tokens, timed_tokens = config.answer_tokens, point.plan.timed_tokens
    encoded = formatter.encode_within(examples, max_positions, new_tokens, task.may_truncate_source)
    if config.speed.enabled and max_positions is not None and timed_tokens >= max_positions:
        raise UsageError(
            f"expected fewer timed tokens than the model's context of {max_positions}, got"
            f" {timed_tokens}; lower speed.new_tokens or strategy.horizon"
        )
    return Workload(task, examples, encoded, formatter, max_positions)


def decode_context(config: Config, workload: Workload | None) -> DecodeContext:
    """Return the decoding settings of a run; random prompts need no padding."""
    context = DecodeContext(config.decoding, 0, config.answer_tokens, config.seed)
    if workload is None:
        return context
    pad, tokenizer = workload.pad_token_id, workload.formatter.tokenizer
    return replace(context, pad_token_id=pad, tokenizer=tokenizer)


def answers_of(output: BatchOutput, context: DecodeContext) -> list[Answer]:
    """Return the answers of a batch as texts, which end before the first stop string."""
    assert context.tokenizer is not None
    answers, seconds = list[Answer](), (output.prefill_seconds, output.decode_seconds)
    for ids, hit in zip(output.token_ids, output.hit_max_length, strict=True):
        text = context.tokenizer.decode(ids, skip_special_tokens=True)
        text, stopped = until_stop(text, context.decoding.stop)
        answers.append(Answer(text, ids, hit and not stopped, *seconds))
    return answers


def timed_prompts(
    workload: Workload | None, batch_size: int, count: int, model: PreTrainedModel, config: Config
) -> list[Batch]:
    """Return batches for timing: the task's prompts, or random prompts of one length."""
    if workload is None:
        generator = torch.Generator().manual_seed(config.seed)
        vocab_size = model.config.get_text_config(decoder=True).vocab_size
        shape = batch_size, config.speed.prompt_tokens
        ids = [torch.randint(vocab_size, shape, generator=generator) for _ in range(count)]
        return [(batch, torch.ones_like(batch)) for batch in ids]
    prompts = workload.prompts
    if workload.max_positions is not None:
        room = max(1, workload.max_positions - config.speed.new_tokens)
        prompts = [prompt[-room:] for prompt in prompts]
    return prompt_batches(prompts, workload.pad_token_id, batch_size, count)


def prompt_batches(
    prompts: Sequence[list[int]], pad_token_id: int, batch_size: int, count: int
) -> list[Batch]:
    """Return `count` full batches; prompts are repeated if there are too few."""
    endless = itertools.cycle(prompts)
    return [
        padded(list(itertools.islice(endless, batch_size)), pad_token_id, left=True)
        for _ in range(count)
    ]
