"""Encode a task's examples as token ids of one model, and make batches of them for timing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.task import Example, Task
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.inference.batching import padded
from ulskip_cli.tasks.encoding import EncodedExample, PromptFormatter, encode, pad_token_id

Batch = tuple[Tensor, Tensor]  # input_ids and attention_mask, each [batch, prompt_len]


@dataclass(frozen=True)
class Workload:
    """A task's examples as token ids of one model. Without a task there are no examples, and random
    prompts are timed.
    """

    task: Task | None  # None for a benchmark
    examples: Sequence[Example]
    encoded: list[EncodedExample] | None  # None for random weights, which have no tokenizer
    pad_token_id: int
    chat: bool | None  # True if prompts are in the model's chat format; None without prompts
    max_positions: int | None = (
        None  # None without a limit; timed prompts leave room for the new tokens
    )
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def prompts(self) -> list[list[int]]:
        """The token ids of every prompt."""
        return [example.prompt_ids for example in self.encoded or []]

    @property
    def num_truncated(self) -> int:
        """The number of sources that were truncated to fit into the context."""
        return sum(example.truncated for example in self.encoded or [])

    @property
    def num_truncated_references(self) -> int:
        """The number of references whose end was dropped at the end of the context."""
        return sum(example.truncated_response for example in self.encoded or [])


RANDOM_PROMPTS = Workload(
    None, (), None, 0, None
)  # of a benchmark: prompts of one length, which need no padding


def encode_workload(point: ResolvedPoint, tokenizer: PreTrainedTokenizerBase | None) -> Workload:
    """Encode a point's examples within the model's context, without weights; raise UsageError if
    the context is too short.
    """
    task, config, max_positions = point.task, point.config, point.metadata.context
    assert task is not None
    if tokenizer is None:
        return Workload(task, point.examples, None, 0, None)
    formatter = PromptFormatter.for_task(task, tokenizer, config.model.chat_options)
    new_tokens = config.decoding.max_new_tokens
    encoded = encode(
        formatter, tokenizer, point.examples, max_positions, new_tokens, task.may_truncate_source
    )
    if (
        config.speed.enabled
        and max_positions is not None
        and config.speed.new_tokens >= max_positions
    ):
        raise UsageError(
            f"expected speed.new_tokens below the model's context of {max_positions}, got"
            f" {config.speed.new_tokens}; lower speed.new_tokens"
        )
    return Workload(
        task,
        point.examples,
        encoded,
        pad_token_id(tokenizer),
        formatter.template.chat,
        max_positions,
        tokenizer,
    )


def check_same_tokens(own: Workload, other: Workload) -> None:
    """Raise NotApplicable unless two models have the same vocabulary and read the same prompts as
    token ids.
    """
    vocabularies = [
        workload.tokenizer and workload.tokenizer.get_vocab() for workload in (own, other)
    ]
    if vocabularies[0] != vocabularies[1]:
        raise NotApplicable(
            "expected a model with the vocabulary of the full model, got another one, so that token"
            " speeds are not comparable; compare models of one family"
        )
    if own.prompts != other.prompts:
        raise NotApplicable(
            "expected the prompts of the full model as token ids, got others; use a model with"
            " the same chat template, and prompts that fit into both contexts"
        )


def timed_prompts(
    workload: Workload, batch_size: int, count: int, model: PreTrainedModel, config: Config
) -> list[Batch]:
    """Return batches for timing: the task's prompts, or random prompts if the weights have no
    tokenizer.
    """
    if workload.encoded is None:
        return _random_prompts(model, (batch_size, config.speed.prompt_tokens), count, config.seed)
    room = (
        None
        if workload.max_positions is None
        else max(1, workload.max_positions - config.speed.new_tokens)
    )
    ends = [prompt if room is None else prompt[-room:] for prompt in workload.prompts]
    return prompt_batches(ends, workload.pad_token_id, batch_size, count)


def prompt_batches(
    prompts: Sequence[list[int]], pad_token_id: int, batch_size: int, count: int
) -> list[Batch]:
    """Return `count` full batches; prompts are repeated if there are too few."""
    starts = range(0, count * batch_size, batch_size)
    return [
        padded(
            [prompts[i % len(prompts)] for i in range(at, at + batch_size)], pad_token_id, left=True
        )
        for at in starts
    ]


def _random_prompts(
    model: PreTrainedModel, shape: tuple[int, int], count: int, seed: int
) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)  # `shape` is [batch, prompt_len]
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    ids = [torch.randint(vocab_size, shape, generator=generator) for _ in range(count)]
    return [(batch, torch.ones_like(batch)) for batch in ids]
