"""Training texts: load, tokenize and batch them, and order the examples of an epoch."""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from ulskip_cli.core.config import changed_choice
from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import parse
from ulskip_cli.core.task import Example, check_references
from ulskip_cli.inference.batching import padded
from ulskip_cli.tasks.encoding import EncodedExample, PromptFormatter, TextPair

IGNORED_LABEL = -100


@dataclass(frozen=True)
class TrainingTexts:
    """The (prompt, response) texts of a training run."""

    train: list[TextPair]
    validation: list[TextPair]  # may be empty
    formatter: PromptFormatter  # made the texts and tokenizes them

    @property
    def sha256(self) -> str:
        """A hash of all texts in order."""
        return hashlib.sha256(
            json.dumps([self.train, self.validation], ensure_ascii=False).encode()
        ).hexdigest()


def load_training_texts(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase
) -> TrainingTexts:
    """Load texts in `tokenizer`'s chat format if it has one; raise UsageError for unusable data.
    Validation texts are those of `train.validation`, or else `train.held_out` examples that are not
    trained on.
    """
    formatter = PromptFormatter.for_task(config.task, tokenizer, config.model.chat_options)
    train, count = _texts(config, formatter, config.task.examples()), config.train.held_out
    if config.train.validation:
        try:
            return TrainingTexts(train, _validation_texts(config, tokenizer), formatter)
        except UsageError as error:
            raise UsageError(f"train.validation: {error}") from None
    if count >= len(train):
        raise UsageError(
            f"expected train.held_out below the number of examples, {len(train)}, got {count};"
            " lower train.held_out"
        )
    chosen = set(random.Random(config.seed).sample(range(len(train)), count))
    held_out = [pair for index, pair in enumerate(train) if index in chosen]
    train = [pair for index, pair in enumerate(train) if index not in chosen]
    return TrainingTexts(train, held_out, formatter)


def _validation_texts(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> list[TextPair]:
    """Make the texts of `train.validation`, which has keys of the task, and `limit`. They have
    references, because a validation loss is always that of the references.
    """
    changes = dict(config.train.validation or {})
    limit = changes.pop("limit", None)
    task = changed_choice(config.task, changes, "task.")
    train = config.train.replace(responses="reference")
    values = {"task": task, "limit": limit, "offset": 0, "train": train}
    config = parse(TrainingConfig, {**dict(config), **values})
    examples = task.examples()
    check_references(examples[: config.limit], "a validation loss")
    formatter = PromptFormatter.for_task(task, tokenizer, config.model.chat_options)
    return _texts(config, formatter, examples)


class TokenPairs(list[EncodedExample]):
    """Prompts and responses as token ids; `num_too_long` counts those dropped for `max_length`."""

    def __init__(self, examples: Sequence[EncodedExample], max_length: int | None) -> None:
        limit = max_length or math.inf
        super().__init__(example for example in examples if example.num_tokens <= limit)
        self.num_too_long = len(examples) - len(self)
        if not self:
            raise UsageError(
                f"expected examples of at most train.max_length={max_length} tokens, got only"
                " longer ones; raise train.max_length"
            )

    def lengths(self) -> list[int]:
        """Return the number of tokens of every example."""
        return [example.num_tokens for example in self]

    def response_lengths(self) -> list[int]:
        """Return the number of tokens of every response."""
        return [len(example.response_ids) for example in self]


@dataclass(frozen=True)
class LossBatch:
    """The tensors from which the loss of one batch is computed."""

    prompt_ids: Tensor  # [batch, prompt_len], padded on the left
    prompt_mask: Tensor  # [batch, prompt_len], 1 for tokens
    response_ids: Tensor  # [batch, response_len], padded on the right
    labels: Tensor  # [batch, response_len], the response with IGNORED_LABEL for padding

    @property
    def is_labelled(self) -> Tensor:
        """True at response tokens, False at padding; [batch, response_len]."""
        return self.labels != IGNORED_LABEL


@dataclass(frozen=True)
class PairCollator:
    """A collator that pads examples to the tensors of a `LossBatch`."""

    pad_token_id: int

    def __call__(self, examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
        """Return the tensors of a `LossBatch` by field, which Trainer passes as keyword
        arguments.
        """
        prompt_ids, prompt_mask = padded(
            [example.prompt_ids for example in examples], self.pad_token_id, left=True
        )
        response_ids, mask = padded(
            [example.response_ids for example in examples], self.pad_token_id, left=False
        )
        return {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "response_ids": response_ids,
            "labels": response_ids.masked_fill(mask == 0, IGNORED_LABEL),
        }


class SimilarLengthSampler(Sampler[int]):
    """A sampler that batches examples of similar length, by `seed` and `epoch` alone."""

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of one epoch, batch after batch; Trainer cuts them into
        batches again.
        """
        rng = random.Random(f"{self.seed} {self.epoch()}")
        # Sorted by about the length, so that each epoch has other batches.
        noisy_lengths = [length * rng.uniform(0.8, 1.2) for length in self.lengths]
        order = sorted(range(len(self.lengths)), key=noisy_lengths.__getitem__)
        num_whole = len(order) // self.batch_size * self.batch_size
        starts = list(range(0, num_whole, self.batch_size))
        rng.shuffle(starts)
        for start in starts:
            yield from order[start : start + self.batch_size]
        # The smaller batch stays the last one, or Trainer would cut all later ones elsewhere.
        yield from order[num_whole:]


def _texts(
    config: TrainingConfig, formatter: PromptFormatter, examples: Sequence[Example]
) -> list[TextPair]:
    """Make the texts of `limit` examples after the first `offset`. If the task allows it, sources
    are truncated so that prompt and response fit into `train.max_length` tokens.
    """
    task, offset, max_length = config.task, config.offset, config.train.max_length
    if offset >= len(examples):
        raise UsageError(
            f"expected offset below the number of training examples, {len(examples)}, got {offset}"
        )
    examples = list(examples[offset:][: config.limit])
    if max_length is not None and task.may_truncate_source:
        # References are not read if own answers replace them and none is held out.
        reads_references = config.train.responses != "own" or config.train.held_out
        for index, pair in enumerate(formatter.encode(examples)):
            response_length = config.own_answer_tokens
            if reads_references:
                response_length = max(response_length, len(pair.response_ids))
            room = max_length - response_length
            if len(pair.prompt_ids) > room:
                with suppress(UsageError):  # too long without a source: left out later, and counted
                    examples[index] = formatter.truncate_source(examples[index], room)
    return list(map(formatter.format, examples))
