"""Examples as token ids, batches of them, and the order in which they come."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ulskip_cli.core.config import instantiate
from ulskip_cli.core.config_schema import TrainingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference.batching import padded
from ulskip_cli.tasks import Example, Task
from ulskip_cli.tasks.encoding import PromptFormatter, TextPair, pad_token_id, truncate_source

_TOKENIZE_AT_ONCE = 1000


@dataclass(frozen=True)
class TrainingTexts:
    """(prompt, response) texts to learn from and to validate on.

    Attributes:
        train: to learn from.
        validation: to validate on; may be empty.
        phrasing: how they were made, and are to be tokenized.
    """

    train: list[TextPair]
    validation: list[TextPair]
    phrasing: PromptFormatter

    @property
    def sha256(self) -> str:
        """Of every text, in order."""
        return hashlib.sha256(json.dumps([self.train, self.validation], ensure_ascii=False).encode()).hexdigest()


def training_texts(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> TrainingTexts:
    """The texts that a configuration names; what is held out is drawn with its seed.

    Args:
        config: the task, and how much of it to use.
        tokenizer: whose chat format is used where it has one; None where there is no tokenizer yet.

    Raises:
        UsageError: a file or a key is wrong, or nothing is left to train on.
    """
    make = _Maker(config, tokenizer)
    train = make.texts(config.task, config.limit)
    phrasing = make.phrasing(instantiate(config.task, "task"))
    if config.train.validation:
        limit = config.train.validation.get("limit")
        changes = {key: value for key, value in config.train.validation.items() if key != "limit"}
        try:
            validation = make.texts({**config.task, **changes}, limit)
        except UsageError as error:
            raise UsageError(f"train.validation: {error}") from None
        return TrainingTexts(train, validation, phrasing)
    if config.train.held_out >= len(train):
        raise UsageError(f"expected train.held_out below the {len(train)} examples there are, got {config.train.held_out}")
    chosen = set(random.Random(config.seed).sample(range(len(train)), config.train.held_out))
    held_out = [texts for i, texts in enumerate(train) if i in chosen]
    return TrainingTexts([texts for i, texts in enumerate(train) if i not in chosen], held_out, phrasing)


def train_tokenizer(texts: Sequence[TextPair], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer learnt from prompts and responses; `<pad>` is 0, `<eos>` is 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for pair in texts for text in pair), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left", model_max_length=max_length
    )


class TokenPairs(Dataset[dict[str, Any]]):
    """Prompts and responses as token ids; a response ends with the end token.

    Attributes:
        left_out: how many examples were longer than `max_length`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[TextPair],
        phrasing: PromptFormatter,
        max_length: int | None,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Tokenize all texts now: it is done once and costs little beside the training."""
        self.pairs: list[tuple[list[int], list[int]]] = []
        for start in range(0, len(texts), _TOKENIZE_AT_ONCE):
            some = texts[start : start + _TOKENIZE_AT_ONCE]
            self.pairs += [(one.prompt_ids, one.response_ids) for one in phrasing.tokenize(tokenizer, some)]
            on_batch(start + len(some))
        fitting = [pair for pair in self.pairs if max_length is None or len(pair[0]) + len(pair[1]) <= max_length]
        self.left_out = len(self.pairs) - len(fitting)
        self.pairs = fitting
        if not fitting:
            raise UsageError(f"every example is longer than train.max_length={max_length}")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompt, response = self.pairs[index]
        return {"prompt": prompt, "response": response}

    def lengths(self) -> list[int]:
        """Tokens of every example."""
        return [len(prompt) + len(response) for prompt, response in self.pairs]


@dataclass(frozen=True)
class PairCollator:
    """Examples to the inputs of the two-pass loss; -100 in `labels` is padding."""

    pad: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """prompt_ids and prompt_mask [batch, prompt_len], response_ids and labels [batch, response_len]."""
        prompt_ids, prompt_mask = padded([one["prompt"] for one in examples], self.pad, left=True)
        response_ids, mask = padded([one["response"] for one in examples], self.pad, left=False)
        return {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "response_ids": response_ids,
            "labels": response_ids.masked_fill(mask == 0, -100),
        }


def collator_for(tokenizer: PreTrainedTokenizerBase) -> PairCollator:
    """The collator that pads with the tokenizer's token."""
    return PairCollator(pad_token_id(tokenizer))


class SimilarLengths(Sampler[int]):
    """A new order every epoch in which every `batch_size` neighbours are of similar length.

    The order follows from seed and epoch alone, so a resumed epoch is the same epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """Nothing is drawn before the epoch begins."""
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        order = sorted(range(len(self.lengths)), key=lambda i: self.lengths[i] * rng.uniform(0.8, 1.2))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        rest = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        rng.shuffle(batches)
        return (i for batch in [*batches, *rest] for i in batch)


@dataclass(frozen=True)
class _Maker:
    """Makes texts of a task's examples."""

    config: TrainingConfig
    tokenizer: PreTrainedTokenizerBase | None

    def phrasing(self, task: Task) -> PromptFormatter:
        """How a task is put to the model."""
        return PromptFormatter.for_task(task, self.tokenizer, self.config.model.chat_options)

    def fitting(self, phrasing: PromptFormatter, task: Task, example: Example) -> Example:
        """The example, its source shortened where the task allows it and `train.max_length` asks for it."""
        most = self.config.train.max_length
        if self.tokenizer is None or most is None or not task.may_truncate_source:
            return example
        (whole,) = phrasing.tokenize(self.tokenizer, [phrasing.format(example)])
        return truncate_source(phrasing, self.tokenizer, example, most - len(whole.response_ids))

    def texts(self, node: dict[str, Any], limit: int | None) -> list[TextPair]:
        """Prompts and responses of a task, a share of its examples the other way round as well."""
        task = instantiate(node, "task")
        phrasing = self.phrasing(task)
        forward = [phrasing.format(self.fitting(phrasing, task, example)) for example in task.examples()[:limit]]
        share = self.config.train.reversed_share
        if not share:
            return forward
        if not hasattr(task, "reversed"):
            raise UsageError(f"train.reversed_share: task {node['name']} has only one direction")
        other = task.reversed()
        phrasing = self.phrasing(other)
        chosen = random.Random(self.config.seed).sample(other.examples()[:limit], round(share * len(forward)))
        return forward + [phrasing.format(example) for example in chosen]
