"""A task's examples as one model reads them, and the batches of them that are timed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks import Task
from ulskip_cli.tasks.encoding import EncodedExample, PromptFormatter, encode, pad_token_id, padded
from ulskip_cli.tasks.example import Example

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
    encoded: list[EncodedExample] | None
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
    phrasing = PromptFormatter.of(task, tokenizer, config.model.chat_options)
    encoded = encode(phrasing, tokenizer, examples, context, config.decoding.max_new_tokens, task.cuts_source)
    room = None if context is None else context - config.speed.new_tokens
    if config.speed.enabled and room is not None and room < 1:
        raise UsageError(f"expected speed.new_tokens below the model's context of {context}, got {config.speed.new_tokens}")
    return Workload(task, examples, encoded, pad_token_id(tokenizer), phrasing.template.chat, context)


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


def _random_prompts(model: PreTrainedModel, shape: tuple[int, int], count: int, seed: int) -> list[Batch]:
    """Random prompts, each batch of `shape`, [batch, prompt_len]."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    ids = [torch.randint(vocab_size, shape, generator=generator) for _ in range(count)]
    return [(batch, torch.ones_like(batch)) for batch in ids]
