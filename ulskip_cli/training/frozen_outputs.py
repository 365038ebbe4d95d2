"""Outputs of the frozen model that a skip adapter is trained towards; prompts and responses are
encoded once and kept.
"""

import copy
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ulskip_cli.core.progress import ReportProgress
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import EncodedPrompt, encode_prompt
from ulskip_cli.training.data import LossBatch, PairCollator

BATCH_TOKENS = 4096  # of the prompts whose outputs are computed together


@dataclass(frozen=True)
class FrozenBatch:
    """The outputs of the frozen model for one batch; training does not change them."""

    prompt: EncodedPrompt  # the prompts without repetitions
    rows: Tensor  # [batch], the prompt of each response
    # [positions, hidden_size] behind the last layer, at the labelled positions but the first ones
    states: Tensor | None
    # keys and values [layers, batch, heads, response_len - 1, head_size] of the responses
    response: tuple[Tensor, Tensor] | None = None

    def repeated(self) -> EncodedPrompt:
        """Return the prompt of every response."""
        return repeat_prompt(self.prompt, self.rows)


def repeat_prompt(prompt: EncodedPrompt, rows: Tensor) -> EncodedPrompt:
    """Return an encoded prompt with the sequences `rows` [batch]; the cache of `prompt` is not
    changed.
    """
    held = getattr(prompt.cache, "kept_layers", tuple(range(len(prompt.cache.layers))))
    cache = shallow_view.fork_cache(prompt.cache, held)
    cache.batch_select_indices(rows)
    return EncodedPrompt(prompt.first_logits[rows], cache, prompt.mask[rows])


class FrozenOutputs:
    """The frozen model's outputs for the prompts and responses of a training, of which the first
    `max_bytes` are kept.
    """

    def __init__(
        self, model: PreTrainedModel, max_bytes: int, layers: Sequence[int] | None = None
    ) -> None:
        """Make an empty store; outputs have the keys and values of `layers`, by default of all."""
        self.model = model
        self.layers = tuple(range(shallow_view.num_layers(model)) if layers is None else layers)
        self.layerwise = LayerwiseModel(model)
        self._prompts: dict[bytes, EncodedPrompt] = {}  # each without padding, by its token ids
        # states, keys and values, by the token ids of prompt and response
        self._responses: dict[bytes, tuple[Tensor, ...]] = {}
        self.free_bytes = max_bytes

    @torch.no_grad()
    def prepare(
        self,
        pairs: Sequence[tuple[list[int], list[int]]],
        with_states: bool,
        report: ReportProgress,
    ) -> None:
        """Compute the outputs for pairs of prompt and response in large batches while there is
        memory; `of` does the rest.

        The batches depend on `pairs` alone, so a resumed training with as much memory has the same
        outputs.
        """
        order, done = sorted(pairs, key=lambda pair: (len(pair[0]), pair)), 0
        while self._separable and done < len(order):
            chunk = order[done : done + max(1, BATCH_TOKENS // len(order[done][0]))]
            examples = [{"prompt": prompt, "response": response} for prompt, response in chunk]
            batch = LossBatch(
                **{
                    name: tensor.to(self.model.device)
                    for name, tensor in PairCollator(0)(examples).items()
                }
            )
            frozen, keys = self._together(batch, with_states), _prompt_keys(batch)
            prompts = {
                key: (int(row), len(prompt))
                for key, row, (prompt, _) in zip(keys, frozen.rows, chunk, strict=True)
            }
            shorter = _with_layers(frozen.prompt, self.layers)
            kept = [
                self._keep(self._prompts, key, _row(shorter, *place))
                for key, place in prompts.items()
            ]
            if frozen.states is not None and frozen.response is not None:
                lengths = [max(0, len(response) - 1) for _, response in chunk]
                for row, state in enumerate(torch.split(frozen.states, lengths)):
                    key, count = _response_key(keys[row], batch, row), lengths[row]
                    held = [part[:, row : row + 1, :, :count].clone() for part in frozen.response]
                    self._keep(self._responses, key, (state.clone(), *held))
            if not all(kept):
                return
            done += len(chunk)
            report(done)

    @torch.no_grad()
    def of(self, batch: LossBatch, with_states: bool) -> FrozenBatch:
        """Return the outputs for a batch; `with_states` asks for the states that predict the
        response.

        Prompts and responses that are not kept run one by one, so that their outputs do not depend
        on the batches, which a resumed training makes anew.
        """
        if not self._separable:
            return self._together(batch, with_states)
        keys = _prompt_keys(batch)
        rows, first = _without_repetitions(keys)
        prompts = [self._prompt(keys[i], batch.prompt_ids[i], batch.prompt_mask[i]) for i in first]
        joined = _joined([_with_layers(prompt, self.layers) for prompt in prompts])
        frozen = FrozenBatch(joined, torch.tensor(rows, device=batch.prompt_ids.device), None)
        count = batch.response_ids.shape[1] - 1
        if not with_states or not count:
            return frozen
        states, keys_, values = zip(
            *(self._response(keys[row], prompts[at], batch, row) for row, at in enumerate(rows)),
            strict=True,
        )
        response = tuple(
            torch.cat([functional.pad(x, (0, 0, 0, count - x.shape[3])) for x in parts], dim=1)
            for parts in (keys_, values)
        )
        return replace(frozen, states=torch.cat(states), response=(response[0], response[1]))

    def _together(self, batch: LossBatch, with_states: bool) -> FrozenBatch:
        """Compute the outputs for a batch in one pass over its prompts and one over its
        responses.
        """
        rows, first = _without_repetitions(_prompt_keys(batch))
        frozen = FrozenBatch(
            encode_prompt(self.model, batch.prompt_ids[first], batch.prompt_mask[first]),
            torch.tensor(rows, device=batch.prompt_ids.device),
            None,
        )
        if not with_states or batch.response_ids.shape[1] == 1:
            return frozen
        states, *response = self.responses(frozen.repeated(), batch)
        return replace(frozen, states=states, response=tuple(response) or None)

    @functools.cached_property
    def _separable(self) -> bool:
        """True if a batch of sequences can be put together from their keys and values."""
        return all(
            type(layer) is DynamicLayer for layer in shallow_view.new_cache(self.model).layers
        )

    @property
    def has_free_masks(self) -> bool:
        """True if a position can attend to any chosen positions of the cache."""
        return (
            self._separable and "position_ids" in inspect.signature(self.model.forward).parameters
        )

    def _prompt(self, key: bytes, ids: Tensor, mask: Tensor) -> EncodedPrompt:
        """Return one encoded prompt without padding, with the kept layers at least."""
        if key in self._prompts:
            return self._prompts[key]
        prompt = self._encode(ids, mask)
        self._keep(self._prompts, key, prompt)
        return prompt

    def _encode(self, ids: Tensor, mask: Tensor) -> EncodedPrompt:
        unpadded = ids[mask.bool()][None]
        return encode_prompt(self.model, unpadded, torch.ones_like(unpadded))

    def _response(
        self, prompt_key: bytes, prompt: EncodedPrompt, batch: LossBatch, row: int
    ) -> tuple[Tensor, ...]:
        """Return the states, keys and values of one response."""
        key = _response_key(prompt_key, batch, row)
        if key not in self._responses:
            if len(prompt.cache.layers) < shallow_view.num_layers(self.model):
                prompt = self._encode(batch.prompt_ids[row], batch.prompt_mask[row])
            ids, labels = _response_of(batch, row)
            single = LossBatch(
                ids.new_zeros(prompt.mask.shape), prompt.mask, ids[None], labels[None]
            )
            response = self.responses(prompt, single)
            self._keep(self._responses, key, response)
            return response
        return self._responses[key]

    def _keep(
        self, kept: dict[bytes, Any], key: bytes, value: EncodedPrompt | tuple[Tensor, ...]
    ) -> bool:
        """Keep a value if there is memory for it; return False if there is none."""
        size = (
            sum(tensor.nbytes for tensor in value)
            if isinstance(value, tuple)
            else value.first_logits.nbytes + shallow_view.kv_bytes(value.cache)
        )
        if key not in kept and size <= self.free_bytes:
            kept[key] = value
            self.free_bytes -= size
        return key in kept

    @torch.no_grad()
    def responses(self, prompt: EncodedPrompt, batch: LossBatch) -> tuple[Tensor, ...]:
        """Return the states [positions, hidden_size] behind the last layer that predict the
        labelled tokens but the first, and the responses' keys and values in `layers`.

        Without plain keys and values, only the states.
        """
        model, labelled = self.model, batch.is_labelled
        inputs = batch.response_ids[:, :-1]
        mask = torch.cat([prompt.mask, labelled[:, :-1].to(prompt.mask)], dim=1)
        cache = shallow_view.fork_cache(prompt.cache, range(len(self.layerwise.layers)))
        options = shallow_view.placing(model, mask, inputs.shape[1])
        entry = self.layerwise.enter(inputs, cache, **options)
        hidden = entry.hidden
        for index in range(len(self.layerwise.layers)):
            hidden = self.layerwise.layer(index, hidden, entry)
        states = hidden[labelled[:, 1:]]
        if not self._separable:
            return (states,)
        start, layers = prompt.mask.shape[1], [cache.layers[i] for i in self.layers]
        keys = torch.stack([layer.keys[:, :, start:] for layer in layers])
        return states, keys, torch.stack([layer.values[:, :, start:] for layer in layers])


def _prompt_keys(batch: LossBatch) -> list[bytes]:
    return [
        _bytes(ids[mask.bool()])
        for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)
    ]


def _response_key(prompt_key: bytes, batch: LossBatch, row: int) -> bytes:
    return prompt_key + _bytes(torch.cat(_response_of(batch, row)))


def _response_of(batch: LossBatch, row: int) -> tuple[Tensor, Tensor]:
    """Return the token ids and labels of one response without padding, each [response_len]."""
    labelled = batch.is_labelled[row].nonzero()
    length = int(labelled[-1]) + 1 if len(labelled) else 1
    return batch.response_ids[row, :length], batch.labels[row, :length]


def _without_repetitions(keys: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Return for every key the number of its first occurrence among the distinct ones, and the
    positions of these.
    """
    first = {key: keys.index(key) for key in keys}
    number = {key: i for i, key in enumerate(first)}
    return [number[key] for key in keys], list(first.values())


def _bytes(ids: Tensor) -> bytes:
    return bytes(ids.cpu().contiguous().numpy().tobytes())


def _with_layers(prompt: EncodedPrompt, layers: Sequence[int]) -> EncodedPrompt:
    """Return a prompt with the keys and values of `layers` alone; it shares their tensors."""
    return replace(prompt, cache=shallow_view.fork_cache(prompt.cache, layers))


def _joined(prompts: Sequence[EncodedPrompt]) -> EncodedPrompt:
    """Return one batch of several sequences, padded on the left."""
    longest = max(prompt.mask.shape[1] for prompt in prompts)
    missing = [longest - prompt.mask.shape[1] for prompt in prompts]
    cache = copy.copy(prompts[0].cache)
    cache.layers = []
    for layers in zip(*(prompt.cache.layers for prompt in prompts), strict=True):
        padded = [
            [functional.pad(value, (0, 0, count, 0)) for value in _values(layer)]
            for layer, count in zip(layers, missing, strict=True)
        ]
        cache.layers.append(
            _with_values(layers[0], *(torch.cat(parts) for parts in zip(*padded, strict=True)))
        )
    mask = torch.cat(
        [
            functional.pad(prompt.mask, (count, 0))
            for prompt, count in zip(prompts, missing, strict=True)
        ]
    )
    return EncodedPrompt(torch.cat([prompt.first_logits for prompt in prompts]), cache, mask)


def _row(prompt: EncodedPrompt, row: int, length: int) -> EncodedPrompt:
    """Return a copy of one prompt of `length` tokens without its padding."""
    cache = copy.copy(prompt.cache)
    parts = [
        [value[row : row + 1, :, -length:].clone() for value in _values(layer)]
        for layer in cache.layers
    ]
    cache.layers = [
        _with_values(layer, *part) for layer, part in zip(cache.layers, parts, strict=True)
    ]
    return EncodedPrompt(
        prompt.first_logits[row : row + 1].clone(),
        cache,
        prompt.mask[row : row + 1, -length:].clone(),
    )


def _values(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values


def _with_values(layer: Any, keys: Tensor, values: Tensor) -> Any:
    changed = copy.copy(layer)
    changed.keys, changed.values = keys, values
    return changed
