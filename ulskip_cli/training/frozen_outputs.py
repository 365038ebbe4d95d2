"""Outputs of the frozen model that a skip adapter is trained towards; prompts and responses are encoded once and kept."""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.exit_scoring import hidden_states
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import EncodedPrompt, encode_prompt
from ulskip_cli.training.data import LossBatch


@dataclass(frozen=True)
class FrozenBatch:
    """The outputs of the frozen model for one batch; training does not change them."""

    prompt: EncodedPrompt  # the prompts without repetitions
    rows: Tensor  # [batch], the prompt of each response
    states: Tensor | None  # [positions, hidden_size] behind the last layer, at the labelled positions but the first ones

    def repeated(self) -> EncodedPrompt:
        """Return the prompt of every response."""
        return repeat_prompt(self.prompt, self.rows)


def repeat_prompt(prompt: EncodedPrompt, rows: Tensor) -> EncodedPrompt:
    """Return an encoded prompt with the sequences `rows` [batch]; the cache of `prompt` is not changed."""
    held = getattr(prompt.cache, "kept_layers", tuple(range(len(prompt.cache.layers))))
    cache = shallow_view.fork_cache(prompt.cache, held)
    cache.batch_select_indices(rows)
    return EncodedPrompt(prompt.first_logits[rows], cache, prompt.mask[rows])


class FrozenOutputs:
    """The frozen model's outputs for the prompts and responses of a training, of which the first `max_bytes` are kept."""

    def __init__(self, model: PreTrainedModel, max_bytes: int) -> None:
        self.model = model
        self.layerwise = LayerwiseModel(model)
        self._prompts: dict[bytes, EncodedPrompt] = {}  # each without padding, by its token ids
        self._states: dict[bytes, Tensor] = {}  # by the token ids of prompt and response
        self._free = max_bytes

    @torch.no_grad()
    def of(self, batch: LossBatch, with_states: bool) -> FrozenBatch:
        """Return the outputs for a batch; `with_states` asks for the states that predict the response.

        Prompts and responses run one by one, so that their outputs do not depend on the batches, which a resumed training
        makes anew.
        """
        keys = [_bytes(ids[mask.bool()]) for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
        names = list(dict.fromkeys(keys))
        rows = torch.tensor([names.index(key) for key in keys], device=batch.prompt_ids.device)
        first = [keys.index(name) for name in names]
        has_states = with_states and batch.response_ids.shape[1] > 1
        if not self._separable:
            prompt = encode_prompt(self.model, batch.prompt_ids[first], batch.prompt_mask[first])
            return FrozenBatch(prompt, rows, self.states(repeat_prompt(prompt, rows), batch) if has_states else None)
        prompts = [self._prompt(name, batch.prompt_ids[i], batch.prompt_mask[i]) for name, i in zip(names, first, strict=True)]
        states = None
        if has_states:
            states = torch.cat([self._response(key, prompts[names.index(key)], batch, row) for row, key in enumerate(keys)])
        return FrozenBatch(_joined(prompts), rows, states)

    @functools.cached_property
    def _separable(self) -> bool:
        """True if a batch of sequences can be put together from their keys and values."""
        return all(type(layer) is DynamicLayer for layer in shallow_view.new_cache(self.model).layers)

    def _prompt(self, key: bytes, ids: Tensor, mask: Tensor) -> EncodedPrompt:
        """Return one encoded prompt without padding."""
        if key in self._prompts:
            return self._prompts[key]
        own = ids[mask.bool()][None]
        prompt = encode_prompt(self.model, own, torch.ones_like(own))
        self._keep(self._prompts, key, prompt, shallow_view.kv_bytes(prompt.cache))
        return prompt

    def _response(self, prompt_key: bytes, prompt: EncodedPrompt, batch: LossBatch, row: int) -> Tensor:
        """Return the states [positions, hidden_size] of one response."""
        length = int(batch.is_labelled[row].nonzero()[-1]) + 1 if batch.is_labelled[row].any() else 1
        ids, labels = (one[row : row + 1, :length] for one in (batch.response_ids, batch.labels))
        key = prompt_key + _bytes(torch.cat([ids, labels], 1))
        if key not in self._states:
            mask = prompt.mask
            states = self.states(prompt, LossBatch(ids.new_zeros(mask.shape), mask, ids, labels))
            self._keep(self._states, key, states, states.nbytes)
            return states
        return self._states[key]

    def _keep(self, kept: dict[bytes, Any], key: bytes, value: Any, size: int) -> None:
        if size <= self._free and key not in kept:
            kept[key] = value
            self._free -= size

    @torch.no_grad()
    def states(self, prompt: EncodedPrompt, batch: LossBatch) -> Tensor:
        """Return the states [positions, hidden_size] behind the last layer that predict the labelled tokens but the first."""
        every = hidden_states(self.model, self.layerwise, prompt, batch.response_ids, batch.is_labelled)
        last = next(hidden for depth, hidden in every if depth == len(self.layerwise.layers))
        return last[batch.is_labelled[:, 1:]]


def _bytes(ids: Tensor) -> bytes:
    return bytes(ids.cpu().contiguous().numpy().tobytes())


def _joined(prompts: Sequence[EncodedPrompt]) -> EncodedPrompt:
    """Return one batch of several sequences, padded on the left."""
    longest = max(one.mask.shape[1] for one in prompts)
    missing = [longest - one.mask.shape[1] for one in prompts]
    cache = copy.copy(prompts[0].cache)
    cache.layers = []
    for layers in zip(*(one.cache.layers for one in prompts), strict=True):
        padded = [
            [functional.pad(one, (0, 0, count, 0)) for one in _values(layer)]
            for layer, count in zip(layers, missing, strict=True)
        ]
        cache.layers.append(_with_values(layers[0], *(torch.cat(parts) for parts in zip(*padded, strict=True))))
    mask = torch.cat([functional.pad(one.mask, (count, 0)) for one, count in zip(prompts, missing, strict=True)])
    return EncodedPrompt(torch.cat([one.first_logits for one in prompts]), cache, mask)


def _values(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values


def _with_values(layer: Any, keys: Tensor, values: Tensor) -> Any:
    changed = copy.copy(layer)
    changed.keys, changed.values = keys, values
    return changed
