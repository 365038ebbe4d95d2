"""Outputs of the frozen model, which are the training targets of a skip adapter; prompts and
responses are encoded once and kept.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from ulskip_cli.core.progress import ReportProgress
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import EncodedPrompt, encode_prompt
from ulskip_cli.tasks.encoding import EncodedExample
from ulskip_cli.training.data import LossBatch, PairCollator

BATCH_TOKENS = 4096  # of the prompts whose outputs are computed together

# Of one sequence without padding: logits [1, 1, vocab_size] of a prompt, or states
# [positions, depths, hidden_size] of a response; then keys and values
# [1, heads, length, head_size] of each layer
Outputs = tuple[Tensor, ...]
TokenKey = tuple[bytes, ...]  # the token ids of a prompt, or of a prompt and a response


@dataclass(frozen=True)
class FrozenBatch:
    """The outputs of the frozen model for one batch; training does not change them."""

    prompt: EncodedPrompt
    # [positions, depths, hidden_size] at some depths, of which the last one is behind the last
    # layer, at the labelled positions but the first ones
    states: Tensor | None = None
    # keys and values [batch, heads, response_len - 1, head_size] of the responses, by layer
    response: Sequence[Tensor] = ()


class FrozenOutputs:
    """The frozen model's outputs for the prompts and responses of a training, of which the first
    `max_bytes` are kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_bytes: int,
        layers: Sequence[int],
        drafts: bool = False,
        depths: Collection[int] = (),
    ) -> None:
        """Make an empty store of outputs with the prompts' keys and values of `layers`, and with
        those of the responses if the layers draft. States are kept in front of the layers `depths`,
        and behind the last layer.
        """
        self.model, self.layers, self.free_bytes, self.drafts = model, layers, max_bytes, drafts
        self.layerwise = LayerwiseModel(model)
        num_layers = len(self.layerwise.layers)
        self.depths = [*sorted({*depths} - {num_layers}), num_layers]
        self._kept: dict[TokenKey, Outputs] = {}

    @torch.no_grad()
    def prepare(self, examples: Sequence[EncodedExample], report: ReportProgress) -> None:
        """Compute the outputs for prompts and responses in large batches while there is memory;
        `of` computes the others.

        The batches depend on `examples` alone, so a resumed training with as much memory has the
        same outputs.
        """

        def length_and_ids(example: EncodedExample) -> tuple[int, list[int], list[int]]:
            return len(example.prompt_ids), example.prompt_ids, example.response_ids

        order, done = sorted(examples, key=length_and_ids), 0
        while self._separable and done < len(order):
            chunk = order[done : done + max(1, BATCH_TOKENS // len(order[done].prompt_ids))]
            tensors = PairCollator(0)(chunk)
            batch = LossBatch(
                **{key: tensor.to(self.model.device) for key, tensor in tensors.items()}
            )
            if not self._keep(self._split(self._together(batch, with_states=True), batch)):
                return
            done += len(chunk)
            report(done)

    @torch.no_grad()
    def of(self, batch: LossBatch, with_states: bool) -> FrozenBatch:
        """Return the outputs for a batch; `with_states` includes the hidden states that predict the
        response.

        Prompts and responses that are not kept run one by one, so that their outputs do not depend
        on batches, which can differ in a resumed training.
        """
        with_states = with_states and batch.response_ids.shape[1] > 1
        if not self._separable:
            return self._together(batch, with_states)
        rows = [self._row(_row_of(batch, row), with_states) for row in range(len(batch.labels))]
        logits, *prompt = _joined([prompt for prompt, _ in rows], left=True)
        cache = kv_cache.filled_cache(prompt)
        cache.kept_layers = tuple(self.layers)
        encoded = EncodedPrompt(logits, cache, batch.prompt_mask)
        if not with_states:
            return FrozenBatch(encoded)
        states, *response = _joined([response for _, response in rows], left=False)
        return FrozenBatch(encoded, states, response)

    @property
    def has_free_masks(self) -> bool:
        """True if a mask can choose the positions of the cache that a token attends to."""
        return self._separable and shallow_view.takes_positions(self.model)

    @functools.cached_property
    def _separable(self) -> bool:
        """True if a batch of sequences can be put together from their keys and values."""
        return all(type(layer) is DynamicLayer for layer in kv_cache.new_cache(self.model).layers)

    def _row(self, batch: LossBatch, with_states: bool) -> tuple[Outputs, Outputs]:
        """Return the outputs of a batch of one prompt and response."""
        prompt, response = _keys(batch)
        outputs: Mapping[TokenKey, Outputs] = self._kept
        if prompt not in outputs or (with_states and response not in outputs):
            outputs = self._split(self._together(batch, with_states), batch)
            self._keep(outputs)
        return outputs[prompt], outputs.get(response, ())

    def _keep(self, outputs: Mapping[TokenKey, Outputs]) -> bool:
        """Keep outputs while memory lasts; return False if those of a prompt do not fit."""
        for key, tensors in outputs.items():
            size = sum(tensor.nbytes for tensor in tensors)
            if key not in self._kept and size <= self.free_bytes:
                self._kept[key] = tuple(tensor.clone() for tensor in tensors)
                self.free_bytes -= size
        return all(key in self._kept for key in outputs if len(key) == 1)

    def _split(self, frozen: FrozenBatch, batch: LossBatch) -> dict[TokenKey, Outputs]:
        """Split a batch into the outputs of each prompt and of each response, without padding."""
        outputs, done = dict[TokenKey, Outputs](), 0
        cached = self._keys_and_values(frozen.prompt.cache)
        longest = batch.prompt_ids.shape[1]
        for row, labelled in enumerate(batch.is_labelled):
            start, count = longest - int(batch.prompt_mask[row].sum()), int(labelled[1:].sum())
            prompt_key, response_key = _keys(_row_of(batch, row))
            rows = slice(row, row + 1)
            prompt = [tensor[rows, :, start:longest] for tensor in cached]
            outputs[prompt_key] = (frozen.prompt.first_logits[rows], *prompt)
            if frozen.states is not None:
                response = [tensor[rows, :, : max(count, 1)] for tensor in frozen.response]
                outputs[response_key] = (frozen.states[done : done + count], *response)
            done += count
        return outputs

    def _keys_and_values(self, cache: DynamicCache) -> list[Tensor]:
        """Return the keys and values [batch, heads, length, head_size] of `layers`, by layer."""
        layers = [cache.layers[layer] for layer in self.layers]
        return [states for layer in layers for states in (layer.keys, layer.values)]

    def _together(self, batch: LossBatch, with_states: bool) -> FrozenBatch:
        """Compute the outputs for a batch in one pass over its prompts and one over its
        responses.
        """
        both = torch.cat([batch.prompt_ids, batch.prompt_mask], dim=1)
        distinct, rows = torch.unique(both, dim=0, return_inverse=True)
        encoded = encode_prompt(self.model, *distinct.chunk(2, dim=1))
        encoded.cache.reorder_cache(rows)
        prompt = EncodedPrompt(encoded.first_logits[rows], encoded.cache, batch.prompt_mask)
        if not with_states:
            return FrozenBatch(prompt)
        labelled = batch.is_labelled
        inputs = self.layerwise.after(prompt, batch.response_ids[:, :-1], labelled)
        states = [
            hidden[labelled[:, 1:]]
            for depth, hidden in enumerate(self.layerwise.states(inputs))
            if depth in self.depths
        ]
        response = list[Tensor]()
        if self.drafts:
            start = batch.prompt_ids.shape[1]
            response = [states[:, :, start:] for states in self._keys_and_values(inputs.cache)]
        return FrozenBatch(prompt, torch.stack(states, dim=1), response)


def _row_of(batch: LossBatch, row: int) -> LossBatch:
    """Return one row of a batch without padding, with at least two response tokens."""
    prompt, rows = batch.prompt_mask[row].bool(), slice(row, row + 1)
    count = max(2, int(batch.is_labelled[row].sum()))
    ids = batch.prompt_ids[rows, prompt]
    return LossBatch(
        ids, torch.ones_like(ids), batch.response_ids[rows, :count], batch.labels[rows, :count]
    )


def _keys(batch: LossBatch) -> tuple[TokenKey, TokenKey]:
    """Return the keys of the prompt and the response of a batch of one row."""
    prompt, response = (ids.cpu().numpy().tobytes() for ids in (batch.prompt_ids, batch.labels))
    return (prompt,), (prompt, response)


def _joined(sequences: Sequence[Outputs], left: bool) -> list[Tensor]:
    """Return the outputs of several sequences as one batch, with keys and values padded."""
    lengths = (states.shape[2] for outputs in sequences for states in outputs[1:])
    longest = max(lengths, default=0)
    joined = [torch.cat([outputs[0] for outputs in sequences])]
    for parts in zip(*(outputs[1:] for outputs in sequences), strict=True):
        missing = [longest - part.shape[2] for part in parts]
        pads = [(0, 0, count, 0) if left else (0, 0, 0, count) for count in missing]
        padded = [functional.pad(part, pad) for part, pad in zip(parts, pads, strict=True)]
        joined.append(torch.cat(padded))
    return joined
