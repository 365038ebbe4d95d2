"""From a task's examples to token ids: templates, chat formats, the model's context, padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks import Task
from ulskip_cli.tasks.example import Example
from ulskip_cli.tasks.prompts import Template

Texts = tuple[str, str]


@dataclass(frozen=True)
class EncodedExample:
    """One example as token ids.

    Attributes:
        prompt_ids: with the special tokens that the tokenizer or the chat format puts around a prompt.
        response_ids: the reference as the model should write it, the end token included.
        cut: whether the source lost its end for the prompt to fit into the context.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    cut: bool = False


@dataclass(frozen=True)
class PromptFormatter:
    """How examples are put to a model: the task's template, in the model's chat format where it has one.

    Attributes:
        template: the task's.
        tokenizer: whose chat format is used; None for a plain template.
        chat_options: variables of that format, for example `enable_thinking`.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase | None = None
    chat_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, task: Task, tokenizer: PreTrainedTokenizerBase | None, chat_options: Mapping[str, Any] | None
    ) -> "PromptFormatter":
        """The phrasing of a task for the owner of a tokenizer; None where there is none yet."""
        has_chat = tokenizer is not None and bool(tokenizer.chat_template)
        return cls(task.template_for(has_chat), tokenizer, chat_options or {})

    def texts(self, example: Example) -> Texts:
        """What the model reads, and what it should write after that."""
        prompt, response = self.template.prompt(example), self.template.response(example)
        if not self.template.chat:
            return prompt, response
        assert self.tokenizer is not None
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        try:
            asked = self.tokenizer.apply_chat_template(
                turns[:1], tokenize=False, add_generation_prompt=True, **self.chat_options
            )
            answered = self.tokenizer.apply_chat_template(turns, tokenize=False, **self.chat_options)
        except Exception as error:  # templates are programs of their authors
            raise UsageError(f"the model's chat format fails ({str(error).strip()[:160]}); try task.template=plain") from None
        if answered.startswith(asked):
            return asked, answered[len(asked) :].rstrip()
        return asked, f"{response}{self.tokenizer.eos_token or ''}"  # the format rewrites earlier turns

    def tokens(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Texts]) -> list[EncodedExample]:
        """Token ids of what `texts` returned; a chat format has its special tokens in the text already."""
        chat = self.template.chat
        prompts = tokenizer([prompt for prompt, _ in texts], add_special_tokens=not chat)["input_ids"]
        responses = tokenizer([response for _, response in texts], add_special_tokens=False)["input_ids"]
        end = [] if chat or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [EncodedExample(prompt, [*response, *end]) for prompt, response in zip(prompts, responses, strict=True)]


def encode(
    phrasing: PromptFormatter,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    context: int | None,
    new_tokens: int,
    cuts_source: bool,
) -> list[EncodedExample]:
    """Examples as token ids that fit into the model's context with what is generated after them.

    Args:
        phrasing: of the task for this model.
        tokenizer: the model's.
        examples: any number.
        context: positions that the model has; None: as many as one likes.
        new_tokens: how many of them to leave free behind a prompt.
        cuts_source: whether a source that is too long loses its end; the instruction never does.

    Returns:
        As many; a response that reaches beyond the context ends there.

    Raises:
        UsageError: a prompt is too long and may not be cut, or the instruction alone is.
    """
    encoded = phrasing.tokens(tokenizer, [phrasing.texts(example) for example in examples])
    if context is None:
        return encoded
    room = context - new_tokens
    for i, example in enumerate(examples):
        if len(encoded[i].prompt_ids) > room:
            if not cuts_source:
                raise _too_long(example, len(encoded[i].prompt_ids), context, new_tokens)
            cut = shortened(phrasing, tokenizer, example, room)
            encoded[i] = replace(phrasing.tokens(tokenizer, [phrasing.texts(cut)])[0], cut=True)
        left = context - len(encoded[i].prompt_ids)
        encoded[i] = replace(encoded[i], response_ids=encoded[i].response_ids[:left])
    return encoded


def shortened(phrasing: PromptFormatter, tokenizer: PreTrainedTokenizerBase, example: Example, most: int) -> Example:
    """The example with as much of the beginning of its source that its prompt has at most `most` tokens.

    Raises:
        UsageError: the instruction alone has more.
    """
    (whole,) = phrasing.tokens(tokenizer, [phrasing.texts(example)])
    if len(whole.prompt_ids) <= most:
        return example
    fits, too_long = 0, len(example.source)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        (one,) = phrasing.tokens(tokenizer, [phrasing.texts(_beginning(example, middle))])
        if len(one.prompt_ids) <= most:
            fits = middle
        else:
            too_long = middle
    if not fits:
        raise UsageError(
            f"example {example.id}: the {max(0, most)} tokens that are left for its prompt do not hold the instruction"
        )
    return _beginning(example, fits)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with; the mask hides it, so any valid id serves where the tokenizer names none."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def padded(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask, each [len(rows), longest row]."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(length - len(row), None) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return ids, mask


def _beginning(example: Example, length: int) -> Example:
    """The example with the first characters of its source, whole words where it has words."""
    beginning = example.source[:length]
    if length < len(example.source) and not example.source[length].isspace() and " " in beginning:
        beginning = beginning.rsplit(None, 1)[0]
    return replace(example, source=beginning.rstrip())


def _too_long(example: Example, length: int, context: int, new_tokens: int) -> UsageError:
    return UsageError(
        f"example {example.id}: its prompt of {length} tokens and {new_tokens} new ones exceed the model's context of "
        f"{context}; shorten it, lower decoding.max_new_tokens, or take a model with a longer context"
    )
