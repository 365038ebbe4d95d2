"""A task's examples as token ids, with its template and the chat template, within the context."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.task import Example, Task, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TextPair = tuple[str, str]  # prompt and response


@dataclass(frozen=True)
class EncodedExample:
    """One example as token ids."""

    prompt_ids: list[int]  # with the special tokens of the tokenizer or the chat template
    response_ids: list[int]  # the reference as the model should write it, with EOS
    truncated: bool = False  # the end of the source was dropped so that the prompt fits the context
    # the end of the response, with EOS, was dropped at the end of the context
    truncated_response: bool = False

    @property
    def num_tokens(self) -> int:
        """The number of tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class PromptFormatter:
    """Makes a task's prompts and responses for one model, as texts and as token ids."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    chat_options: JsonObject = field(default_factory=dict)  # variables of the chat template

    @classmethod
    def for_task(
        cls, task: Task, tokenizer: PreTrainedTokenizerBase, chat_options: JsonObject | None
    ) -> PromptFormatter:
        """Make the formatter of a task for the tokenizer of a model."""
        return cls(task.template_for(bool(tokenizer.chat_template)), tokenizer, chat_options or {})

    def format(self, example: Example) -> TextPair:
        """Return prompt and expected response as texts, in the chat template if the task's template
        is a chat; raise UsageError if the chat template fails.
        """
        prompt, response = self.template.prompt(example), self.template.response(example)
        if not self.template.chat:
            return prompt, response
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        chat = partial(self.tokenizer.apply_chat_template, tokenize=False, **self.chat_options)
        try:
            chat_prompt = chat(messages[:1], add_generation_prompt=True)
            conversation = chat(messages)
        except Exception as error:  # a chat template is a program and may raise anything
            raise UsageError(
                f"the model's chat template failed ({reason(error)});"
                " task.template=plain needs no chat template"
            ) from None
        if conversation.startswith(chat_prompt):
            return chat_prompt, conversation[len(chat_prompt) :].rstrip()
        # The chat template changes the prompt once an answer follows, e.g. drops its reasoning.
        return chat_prompt, f"{response}{self.tokenizer.eos_token or ''}"

    def tokenize(self, pairs: Sequence[TextPair]) -> list[EncodedExample]:
        """Tokenize prompts and responses; special tokens are added unless the chat template did."""
        tokenizer, chat = self.tokenizer, self.template.chat
        prompts, responses = [text for text, _ in pairs], [text for _, text in pairs]
        prompt_ids = tokenizer(prompts, add_special_tokens=not chat)["input_ids"]
        response_ids = tokenizer(responses, add_special_tokens=False)["input_ids"]
        # The text of a chat's response has its EOS token already; see `format`.
        eos = [] if chat or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [
            EncodedExample(prompt, [*response, *eos])
            for prompt, response in zip(prompt_ids, response_ids, strict=True)
        ]

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Return examples as token ids."""
        return self.tokenize(list(map(self.format, examples)))

    def encode_within(
        self,
        examples: Sequence[Example],
        context: int | None,
        max_new_tokens: int,
        may_truncate_source: bool,
    ) -> list[EncodedExample]:
        """Encode examples so that each prompt and its new tokens fit into `context` positions; None
        is unlimited. If `may_truncate_source`, the end of a long source is dropped; otherwise a
        long prompt raises UsageError. A response ends with the context.
        """
        encoded = self.encode(examples)
        if context is None:
            return encoded
        max_prompt_tokens = context - max_new_tokens
        fitting = []
        for example, ids in zip(examples, encoded, strict=True):
            if len(ids.prompt_ids) > max_prompt_tokens:
                if not may_truncate_source:
                    raise UsageError(
                        f"example {example.id}: a prompt of {len(ids.prompt_ids)} tokens and"
                        f" {max_new_tokens} new tokens exceed the model's context of {context};"
                        " shorten the prompt, lower max_new_tokens, or change the model"
                    )
                (short,) = self.encode([self.truncate_source(example, max_prompt_tokens)])
                ids = replace(short, truncated=True)
            max_response_tokens = context - len(ids.prompt_ids)
            if len(ids.response_ids) > max_response_tokens:
                kept = ids.response_ids[:max_response_tokens]
                ids = replace(ids, response_ids=kept, truncated_response=True)
            fitting.append(ids)
        return fitting

    def truncate_source(self, example: Example, max_prompt_tokens: int) -> Example:
        """Keep as much of the source as fits into `max_prompt_tokens`; raise UsageError if the
        instruction alone is too long.
        """

        def is_too_long(length: int) -> bool:
            (shorter,) = self.encode([_with_source_prefix(example, length)])
            return len(shorter.prompt_ids) > max_prompt_tokens

        lengths = range(1, len(example.source) + 1)  # in characters
        # How many lengths are not too long; as they begin with 1, it is also the longest of them.
        longest = bisect.bisect_left(lengths, True, key=is_too_long)
        if not longest:
            raise UsageError(
                f"example {example.id}: the prompt with one letter of the source exceeds the"
                f" {max(0, max_prompt_tokens)} tokens that the model's context leaves for a prompt;"
                " lower max_new_tokens, or shorten task.prompt"
            )
        return _with_source_prefix(example, longest)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding id, else the EOS id, else 0; the attention mask hides padding."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    return int(pad if pad is not None else eos or 0)


def _with_source_prefix(example: Example, length: int) -> Example:
    """Keep the first `length` characters of the source, up to the last whole word if there are
    spaces.
    """
    if length == len(example.source):
        return example
    prefix = example.source[:length]
    if not example.source[length].isspace() and " " in prefix.strip():
        prefix = prefix.rsplit(None, 1)[0]
    return replace(example, source=prefix.rstrip())
