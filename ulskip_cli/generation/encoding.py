"""Texts to padded tensors: prompts padded on the left, responses on the right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairBatch:
    """Prompts and the responses that follow them, as token ids."""

    prompt_ids: Tensor  # [batch, prompt_len], padded on the left
    prompt_mask: Tensor  # [batch, prompt_len]
    response_ids: Tensor  # [batch, response_len], padded on the right, the end token included
    response_mask: Tensor  # [batch, response_len]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts, each [batch, prompt_len], with the special tokens that the tokenizer puts in front."""
    return padded([tokenizer(prompt)["input_ids"] for prompt in prompts], pad_id(tokenizer), left=True)


def encode_pairs(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> PairBatch:
    """(prompt, response) texts as one batch; every response ends with the end token."""
    prompt_ids, prompt_mask = encode_prompts(tokenizer, [prompt for prompt, _ in texts])
    responses = [response_tokens(tokenizer, response) for _, response in texts]
    return PairBatch(prompt_ids, prompt_mask, *padded(responses, pad_id(tokenizer), left=False))


def response_tokens(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    """Token ids of a response, the end token included where the tokenizer has one."""
    ids: list[int] = tokenizer(response, add_special_tokens=False)["input_ids"]
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
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
