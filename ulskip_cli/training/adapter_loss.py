"""The loss of a skip adapter: patches and LoRA in the views of a frozen model, trained towards the
model's own distribution.

The prompt's keys and values and the full model's states come from the frozen model, so they are
computed once and kept. A step costs the response tokens alone.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ulskip_cli.core.config_schema import TrainOptions
from ulskip_cli.core.progress import ReportProgress
from ulskip_cli.core.schedule import Layers, Stage
from ulskip_cli.core.weight_sizes import gaps
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.skip_adapter import SkipAdapter, patched_view
from ulskip_cli.inference.teacher_forcing import EncodedPrompt, divergence, encode_prompt
from ulskip_cli.tasks.encoding import EncodedExample
from ulskip_cli.training.data import LossBatch, PairCollator
from ulskip_cli.training.two_pass_loss import ADAPTER, TwoPassLoss, with_lora

# The most tokens of prompts, and of prompts and responses, whose outputs are computed together.
PROMPT_TOKENS, BATCH_TOKENS = 4096, 32768


class AdapterLoss(TwoPassLoss):
    """The loss of a skip adapter as a module; its trained parameters are the patches and the LoRA
    matrices.
    """

    def __init__(
        self, model: PreTrainedModel, start: SkipAdapter, train: TrainOptions, max_bytes: int
    ) -> None:
        """Prepare LoRA and patches for training, with the values of `start`, which has a patch at
        every gap. The weights of `model` are frozen, but not changed.

        `max_bytes` bounds the stored outputs of the full model.
        """
        # Layers that no view keeps need no LoRA, and no keys and values of the prompts.
        layers = sorted(set().union(*start.kept_sets))
        lora_model, self.lora_paths = with_lora(start.folded(model), layers, train.lora)
        super().__init__(lora_model, prompt_layers="all", weights=train)
        self.start = start
        depths = set[int]()  # whose states the gap loss reads
        for kept in start.kept_sets if train.gap_weight else ():
            depths.update(*spans(kept, start.num_layers))
        self.outputs = FrozenOutputs(model, max_bytes, layers, depths)
        # Modules by set and layer, so their tensors are named as in a `SkipAdapter`.
        self.patches = nn.ModuleList()
        for index in range(len(start.kept_sets)):
            patches = start.patches(index, model)
            self.patches.append(nn.ModuleDict({str(layer): patches[layer] for layer in patches}))
        for name, down, up, scale in self._lora():
            if f"{name}.A" in start.tensors:  # `start` is an adapter that is trained further
                down.data.copy_(start.tensors[f"{name}.A"])
                up.data.copy_(start.tensors[f"{name}.B"] / scale)  # stored as `scale * B`

    def _lora(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter, float]]:
        """Yield the name of every adapted module in a `SkipAdapter`, its matrices A [rank, in] and
        B [out, rank], and the scale of `B A`.
        """
        for path, name in self.lora_paths.items():
            module: Any = self.model.get_submodule(path)
            down, up = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            yield name, down, up, module.scaling[ADAPTER]

    @property
    def needs_states(self) -> bool:
        """True if the loss compares with the full model's states."""
        return self.weights.distill_weight + self.weights.gap_weight > 0

    def schedule_loss(self, batch: LossBatch, stages: tuple[Stage, ...]) -> Tensor:
        """Compute the loss of a batch under a schedule, summed over the labelled positions: the gap
        loss, the cross-entropy and the divergence from the full model, each with its weight.
        """
        weights = self.weights
        frozen = self.outputs.of(batch, self.needs_states)
        # has a gradient even if all responses end before the first step that skips a layer
        loss = torch.zeros((), device=batch.labels.device, requires_grad=True)
        if weights.gap_weight and frozen.states is not None:
            sets = [stage.kept_layers for stage in stages]
            losses = [self._gap_loss(batch, kept, frozen.prompt, frozen.states) for kept in sets]
            loss = loss + weights.gap_weight * torch.stack(losses).mean()
        if not weights.distill_weight and not weights.ce_weight:
            return loss
        skips = stages[-1].kept_layers != self.all_layers
        # Validation also evaluates all layers, some of which the frozen prompt may lack.
        logits = self._student_logits(batch, stages, frozen.prompt if skips else None)
        if weights.ce_weight:
            loss = loss + weights.ce_weight * self._cross_entropy(logits, batch.labels)
        if weights.distill_weight and frozen.states is not None:
            with torch.no_grad():  # from the states behind the last layer
                target = self.outputs.layerwise.logits(frozen.states[None, :, -1])[0]
            # The full model predicts the first token, so that position is not compared.
            student = logits[:, 1:][batch.is_labelled[:, 1:]]
            loss = loss + weights.distill_weight * divergence(target, student)
        return loss

    def _gap_loss(
        self, batch: LossBatch, kept: Layers, prompt: EncodedPrompt, states: Tensor
    ) -> Tensor:
        """Compute the mean over the spans of |y - h|^2 / |h|^2, summed over the positions. A span
        is a gap with the kept layers around it. These run on the full model's state in front of
        them and give y; h is the full model's state at the end of the span. `states` are those of
        `FrozenBatch`.
        """
        depths = self.outputs.depths
        layerwise = self._layerwise(kept)
        ids, labelled = batch.response_ids[:, :-1], batch.is_labelled
        chosen = labelled[:, 1:]  # the positions that have states
        losses = [states.new_zeros((), dtype=torch.float32)]  # so that no gap gives 0
        for start, end in spans(kept, len(self.all_layers)):
            # Layers add keys and values to the cache in `inputs`, so each span has its own.
            inputs = layerwise.after(prompt, ids, labelled, kept)
            hidden = torch.zeros_like(inputs.hidden)
            hidden[chosen] = states[:, depths.index(start)]
            for index, layer in enumerate(kept):
                if start <= layer < end:
                    hidden = layerwise.layer(index, hidden, inputs)
            target = states[:, depths.index(end)].float()
            error = (hidden[chosen].float() - target).pow(2).sum(-1)
            losses.append((error / target.pow(2).sum(-1)).sum())
        return torch.stack(losses).sum() / max(1, len(losses) - 1)

    def adapter(self, record: dict[str, object]) -> SkipAdapter:
        """Return the trained tensors as an adapter with the given `record`. Folded patches are not
        trained, so they are those of the start.
        """
        tensors = {
            name: tensor for name, tensor in self.start.tensors.items() if name.startswith("fold.")
        }
        tensors |= {f"patch.{name}": tensor for name, tensor in self.patches.state_dict().items()}
        for name, down, up, scale in self._lora():
            tensors |= {f"{name}.A": down, f"{name}.B": scale * up}
        return replace(self.start, tensors=tensors, record=record)

    def _view(self, kept: Layers) -> PreTrainedModel:
        """Return the frozen model for all layers, else a view with the patches of this set and the
        LoRA of its layers. Views are made once.
        """
        if kept == self.all_layers:
            return self.outputs.model
        if kept not in self._views:
            patches = cast(nn.ModuleDict, self.patches[self.start.kept_sets.index(kept)])
            by_layer = {int(layer): patch for layer, patch in patches.items()}
            self._views[kept] = patched_view(self.model, kept, by_layer)
        return self._views[kept]


# The outputs of one sequence without padding. Those of a prompt are the logits [1, 1, vocab_size]
# that predict the first response token, then the keys and the values [1, heads, length, head_size]
# of each layer. Those of a response are one tensor: states [positions, depths, hidden_size].
Outputs = tuple[Tensor, ...]
# Finds outputs by token ids: (prompt,) those of a prompt, (prompt, response) those of a response.
TokenKey = tuple[bytes, ...]


@dataclass(frozen=True)
class FrozenBatch:
    """The outputs of the frozen model for one batch; training does not change them."""

    prompt: EncodedPrompt  # may lack the keys and values of layers that no view keeps
    # [positions, depths, hidden_size] at `FrozenOutputs.depths`, and at the labelled positions of
    # all rows but their first ones, which the prompt predicts
    states: Tensor | None = None


class FrozenOutputs:
    """The frozen model's outputs for the prompts and responses of a training, of which the first
    `max_bytes` are kept.
    """

    def __init__(
        self, model: PreTrainedModel, max_bytes: int, layers: Sequence[int], depths: Collection[int]
    ) -> None:
        """Make an empty store. It will have the prompts' keys and values of `layers`, and the
        responses' states in front of the layers `depths`, and behind the last layer.
        """
        self.model, self.layers, self.free_bytes = model, layers, max_bytes
        self.layerwise = LayerwiseModel(model)
        num_layers = len(self.layerwise.layers)
        self.depths = [*sorted({*depths} - {num_layers}), num_layers]
        self._kept: dict[TokenKey, Outputs] = {}
        # True if a batch of prompts can be put together from their keys and values; recurrent
        # states, for example, cannot be padded.
        self._separable = all(
            type(layer) is DynamicLayer for layer in kv_cache.new_cache(model).layers
        )

    @torch.no_grad()
    def prepare(
        self, examples: Sequence[EncodedExample], with_states: bool, report: ReportProgress
    ) -> None:
        """Compute the outputs for prompts and responses in large batches while there is memory;
        `of` computes the others.

        The batches depend on `examples` alone, so a resumed training with as much memory has the
        same outputs.
        """
        # Prompts of similar length need little padding, and equal ones are encoded once.
        order = sorted(
            examples, key=lambda pair: (len(pair.prompt_ids), pair.prompt_ids, pair.response_ids)
        )
        longest_response = max(len(pair.response_ids) for pair in order)
        done = 0
        while self._separable and done < len(order):
            length = len(order[done].prompt_ids)
            count = min(PROMPT_TOKENS // length, BATCH_TOKENS // (length + longest_response))
            chunk = order[done : done + max(1, count)]
            tensors = PairCollator(0)(chunk)  # the id of padding, which is masked, does not matter
            batch = LossBatch(
                **{key: tensor.to(self.model.device) for key, tensor in tensors.items()}
            )
            if not self._keep(self._split(self._together(batch, with_states), batch)):
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
        # The prompt predicts the first token, so only later ones have states.
        with_states = with_states and batch.response_ids.shape[1] > 1
        if not self._separable:
            return self._together(batch, with_states)
        prompts, states = list[Outputs](), list[Tensor]()
        for row, prompt_key, response_key in _rows_of(batch):
            outputs = self._kept
            if prompt_key not in outputs or (with_states and response_key not in outputs):
                outputs = self._split(self._together(row, with_states), row)
                self._keep(outputs)
            prompts.append(outputs[prompt_key])
            states += outputs[response_key] if with_states else ()
        logits, *cached = _joined(prompts)
        cache = kv_cache.filled_cache(cached)
        cache.kept_layers = tuple(self.layers)
        encoded = EncodedPrompt(logits, cache, batch.prompt_mask)
        return FrozenBatch(encoded, torch.cat(states) if with_states else None)

    def _keep(self, outputs: Mapping[TokenKey, Outputs]) -> bool:
        """Keep those outputs that fit into `free_bytes`, and lower it; return False if a prompt's
        do not fit.
        """
        for key, tensors in outputs.items():
            size = sum(tensor.nbytes for tensor in tensors)
            if key not in self._kept and size <= self.free_bytes:
                # Clones, because slices would hold the memory of the whole batch.
                self._kept[key] = tuple(tensor.clone() for tensor in tensors)
                self.free_bytes -= size
        return all(key in self._kept for key in outputs if len(key) == 1)  # keys of prompts

    def _split(self, frozen: FrozenBatch, batch: LossBatch) -> dict[TokenKey, Outputs]:
        """Split a batch, as `_together` computes it, into the outputs of each prompt and, if it
        has states, of each response, without padding.
        """
        outputs = dict[TokenKey, Outputs]()
        layers = [frozen.prompt.cache.layers[number] for number in self.layers]
        cached = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        # The prompt predicts the first token, so there are states for the others, row after row.
        counts = batch.is_labelled[:, 1:].sum(1).tolist()
        states = () if frozen.states is None else torch.split(frozen.states, counts)
        for index, (row, prompt_key, response_key) in enumerate(_rows_of(batch)):
            length = row.prompt_ids.shape[1]
            # Padding is on the left of a prompt.
            unpadded = [tensor[index : index + 1, :, -length:] for tensor in cached]
            outputs[prompt_key] = (frozen.prompt.first_logits[index : index + 1], *unpadded)
            if states:
                outputs[response_key] = (states[index],)
        return outputs

    def _together(self, batch: LossBatch, with_states: bool) -> FrozenBatch:
        """Compute the outputs for a batch in one pass over its prompts and one over its
        responses. The prompts' cache has all layers.
        """
        # Encode a prompt with several responses once: `rows` [batch] are indices into `distinct`.
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
        return FrozenBatch(prompt, torch.stack(states, dim=1))


def _rows_of(batch: LossBatch) -> Iterator[tuple[LossBatch, TokenKey, TokenKey]]:
    """Yield each row of a batch without padding as a batch of its own, and the keys of its prompt
    and of its response. A response of one token keeps a second position, of padding: the layers do
    not read the last position, and need at least one other.
    """
    for index in range(len(batch.labels)):
        rows, count = slice(index, index + 1), max(2, int(batch.is_labelled[index].sum()))
        ids = batch.prompt_ids[rows, batch.prompt_mask[index].bool()]
        labels = batch.labels[rows, :count]
        row = LossBatch(ids, torch.ones_like(ids), batch.response_ids[rows, :count], labels)
        prompt, response = (tokens.cpu().numpy().tobytes() for tokens in (ids, labels))
        yield row, (prompt,), (prompt, response)


def _joined(prompts: Sequence[Outputs]) -> list[Tensor]:
    """Return the outputs of several prompts as one batch, in the layout of `Outputs`, with keys and
    values padded on the left.
    """
    logits, *cached = zip(*prompts, strict=True)
    joined = [torch.cat(logits)]
    for tensors in cached:  # the keys or the values of one layer, of all prompts
        longest = max(tensor.shape[2] for tensor in tensors)
        pads = [(0, 0, longest - tensor.shape[2], 0) for tensor in tensors]
        joined.append(torch.cat(list(map(functional.pad, tensors, pads))))
    return joined


def spans(kept: Layers, num_layers: int) -> list[tuple[int, int]]:
    """Return the spans of layers around each gap, from layer `start` to before layer `end`: from
    the kept layer before the gap to the kept layer after it.

    Spans do not overlap: a kept layer between two gaps belongs to the first. If it is the last kept
    layer, the second gap has no other layer, so both gaps are in one span.

    >>> spans((0, 1, 4, 6), 8)
    [(1, 5), (5, 8)]
    """
    after_gaps, result = gaps(kept, num_layers), []
    for before, after in pairwise([-1, *kept, num_layers]):
        if after not in after_gaps or (after == num_layers and before in after_gaps):
            continue  # no gap, or a part of the span before
        start = before + 1 if before < 0 or before in after_gaps else before
        to_the_end = after >= kept[-1] and num_layers in after_gaps
        result.append((start, num_layers if to_the_end else after + 1))
    return result
