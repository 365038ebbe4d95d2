"""The loss of a skip adapter: patches and LoRA in the views of a frozen model, trained towards the
model's own distribution. The outputs of the frozen model are computed once and kept, so a step
costs the response tokens alone.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ulskip_cli.core.config_schema import TrainOptions
from ulskip_cli.core.schedule import Layers, Stage, layer_ranges
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.skip_adapter import LinearAddress, Lora, SkipAdapter, patched_view
from ulskip_cli.inference.teacher_forcing import EncodedPrompt, divergence, encode_prompt
from ulskip_cli.training.data import LossBatch
from ulskip_cli.training.two_pass_loss import PEFT_NAME, LossWeights, TwoPassLoss, with_lora


class AdapterLoss(TwoPassLoss):
    """The loss of a skip adapter; its trained parameters are the patches and the LoRA matrices."""

    def __init__(
        self, model: PreTrainedModel, start: SkipAdapter, train: TrainOptions, max_bytes: int
    ) -> None:
        """Prepare LoRA and patches with the values of `start`, which has a patch at every gap. The
        weights of `model` are not changed. `max_bytes` bounds the kept outputs of the full model.
        """
        # Folded patches, which have one set, are merged into the weights and not trained.
        with_folds = replace(start, lora={}).merged(model, start.kept_sets[0])
        # Layers that no view keeps need no LoRA.
        layers = sorted(set().union(*start.kept_sets))
        lora_model, self.lora_paths = with_lora(with_folds, layers, train.lora)
        super().__init__(lora_model, prompt_layers="all", loss_weights=LossWeights.of(train))
        self.start = start
        # All other patches are modules, by set, and there by the layer behind the gap.
        self.patches = nn.ModuleList()
        for kept in start.kept_sets:
            modules = start.modules(kept, model)
            self.patches.append(nn.ModuleDict({str(gap): modules[gap] for gap in modules}))
        depths = set[int]()  # whose states the gap loss compares: both ends of each span
        if train.gap_weight:
            for kept in start.kept_sets:
                depths.update(*spans(kept, start.num_layers))
        self.outputs = FrozenOutputs(model, max_bytes, depths)
        for address, (down, up), scale in self._lora():
            if address in start.lora:  # `start` is an adapter that is trained further
                down.data.copy_(start.lora[address].down)
                # peft multiplies the product by `scale`, and an adapter stores `scale * up`
                up.data.copy_(start.lora[address].up / scale)

    def _lora(self) -> Iterator[tuple[LinearAddress, Lora, float]]:
        """Yield address, matrices and the scale of their product of every adapted module."""
        for path, address in self.lora_paths.items():
            module: Any = self.model.get_submodule(path)
            lora = Lora(module.lora_A[PEFT_NAME].weight, module.lora_B[PEFT_NAME].weight)
            yield address, lora, module.scaling[PEFT_NAME]

    def schedule_loss(
        self, batch: LossBatch, stages: tuple[Stage, ...], weights: LossWeights
    ) -> Tensor:
        """Compute the loss of a batch, summed over the labelled positions: gap loss, cross-entropy
        and divergence from the full model, each with its weight.
        """
        frozen = self.outputs.of(batch, with_states=weights.distillation + weights.gap > 0)
        # has a gradient even if all responses end before the first step that skips a layer
        loss = torch.zeros((), device=batch.labels.device, requires_grad=True)
        if weights.gap and frozen.states is not None:
            losses = [
                self._gap_loss(batch, stage.kept_layers, frozen.prompt, frozen.states)
                for stage in stages
            ]
            loss = loss + weights.gap * torch.stack(losses).mean()
        if not weights.distillation and not weights.cross_entropy:
            return loss
        logits = self._logits(batch, stages, frozen.prompt)
        if weights.cross_entropy:
            loss = loss + weights.cross_entropy * self._cross_entropy(logits, batch.labels)
        if weights.distillation and frozen.states is not None:
            states_behind_all = frozen.states[None, :, -1]
            with torch.no_grad():
                target = self.outputs.layerwise.logits(states_behind_all)[0]
            # The full model predicts the first token, so that position is not compared.
            student = logits[:, 1:][batch.is_labelled[:, 1:]]
            loss = loss + weights.distillation * divergence(target, student)
        return loss

    def _gap_loss(
        self, batch: LossBatch, kept: Layers, prompt: EncodedPrompt, states: Tensor
    ) -> Tensor:
        """Compute the mean over the spans of |y - h|^2 / |h|^2, summed over the positions. A span
        is a gap with the kept layers around it. These run on the full model's state in front of
        them and give y; h is the full model's state at the end of the span.
        """
        by_depth = dict(zip(self.outputs.depths, states.unbind(1), strict=True))
        losses = []
        for start, end in spans(kept, len(self.all_layers)):
            layers = range(start, end)
            output = self._run_span(batch, kept, layers, prompt, by_depth[start])
            losses.append(_relative_error(output, by_depth[end]))
        return torch.stack(losses).mean() if losses else states.new_zeros(())

    def _run_span(
        self, batch: LossBatch, kept: Layers, span: range, prompt: EncodedPrompt, states: Tensor
    ) -> Tensor:
        """Run the kept layers of a span on the states [positions, hidden_size] in front of it;
        return those behind it.
        """
        layerwise = self._layerwise(kept)
        # Layers add keys and values to the cache in `inputs`, so each span has its own.
        inputs = layerwise.layer_inputs_after(
            prompt, batch.response_ids[:, :-1], batch.is_labelled, kept
        )
        has_states = batch.is_labelled[:, 1:]
        hidden = torch.zeros_like(inputs.hidden)
        hidden[has_states] = states
        for index, layer in enumerate(kept):
            if layer in span:
                hidden = layerwise.layer(index, hidden, inputs)
        return hidden[has_states]

    def adapter(self, record: dict[str, object]) -> SkipAdapter:
        """Return the trained tensors as an adapter with `record`; folded patches are those of the
        start.
        """
        patches = {}
        for kept, modules in zip(self.start.kept_sets, self.patches, strict=True):
            trained = {int(gap): module.patch for gap, module in cast(Any, modules).items()}
            patches[kept] = {**self.start.patches[kept], **trained}
        lora = {address: Lora(down, scale * up) for address, (down, up), scale in self._lora()}
        return replace(self.start, patches=patches, lora=lora, record=record)

    def _view(self, kept: Layers) -> PreTrainedModel:
        """Return the frozen model for all layers, else the view with the patches of this set and
        LoRA.
        """
        if kept == self.all_layers:
            return self.outputs.model
        if kept not in self._views:
            patches = cast(nn.ModuleDict, self.patches[self.start.kept_sets.index(kept)])
            by_layer = {int(layer): patch for layer, patch in patches.items()}
            self._views[kept] = patched_view(self.model, kept, by_layer)
        return self._views[kept]


def _relative_error(states: Tensor, target: Tensor) -> Tensor:
    """Return |states - target|^2 / |target|^2 of [positions, hidden_size], summed over the
    positions.
    """
    target = target.float()
    error = (states.float() - target).pow(2).sum(-1)
    return (error / target.pow(2).sum(-1)).sum()


@dataclass(frozen=True)
class FrozenBatch:
    """The frozen model's outputs for one batch, which training does not change."""

    prompt: EncodedPrompt
    # [positions, depths, hidden_size] at `FrozenOutputs.depths`, and at the labelled positions of
    # all rows but their first ones, which the prompt predicts
    states: Tensor | None = None


class FrozenOutputs:
    """The frozen model's outputs for prompts and responses, of which the first `max_bytes` are
    kept.
    """

    def __init__(self, model: PreTrainedModel, max_bytes: int, depths: Collection[int]) -> None:
        """Make an empty store for the prompts' keys and values, and the responses' states in front
        of the layers `depths` and behind the last layer.
        """
        self.model, self.layerwise = model, LayerwiseModel(model)
        num_layers = len(self.layerwise.layers)
        self.depths = [*sorted({*depths} - {num_layers}), num_layers]
        self._prompts: dict[bytes, EncodedPrompt] = {}  # by token ids
        self._states: dict[tuple[bytes, bytes], Tensor] = {}  # of prompt and response
        # True if a batch of prompts can be put together from their keys and values; recurrent
        # states, for example, cannot be padded. Then whole batches, which do not recur, are run.
        layers = kv_cache.new_cache(model).layers
        self._separable = all(type(layer) is DynamicLayer for layer in layers)
        self.bytes_left = max_bytes if self._separable else 0

    @torch.no_grad()
    def of(self, batch: LossBatch, with_states: bool) -> FrozenBatch:
        """Return the outputs for a batch; `with_states` includes the hidden states that predict the
        response. Rows run one by one, so that their outputs do not depend on batches, which differ
        between epochs and in a resumed training.
        """
        rows = list(_rows_of(batch)) if self._separable else [batch]
        prompts = [self._prompt(row) for row in rows]
        prompt = _joined(prompts, batch.prompt_mask) if self._separable else prompts[0]
        # The prompt predicts the first token, so only later ones have states.
        if not with_states or batch.response_ids.shape[1] == 1:
            return FrozenBatch(prompt)
        states = map(self._response_states, prompts, rows)
        return FrozenBatch(prompt, torch.cat(list(states)))

    def _prompt(self, row: LossBatch) -> EncodedPrompt:
        """Return the encoded prompt of a row, and keep it."""
        key = _key(row.prompt_ids)
        prompt = self._prompts.get(key)
        if prompt is None:
            prompt = encode_prompt(self.model, row.prompt_ids, row.prompt_mask)
            if self._reserve(prompt.nbytes):
                self._prompts[key] = prompt
        return prompt

    def _response_states(self, prompt: EncodedPrompt, row: LossBatch) -> Tensor:
        """Return `FrozenBatch.states` of a row, and keep them."""
        key, labelled = (_key(row.prompt_ids), _key(row.labels)), row.is_labelled
        states = self._states.get(key)
        if states is None:
            inputs = self.layerwise.layer_inputs_after(prompt, row.response_ids[:, :-1], labelled)
            at_depths = [
                hidden[labelled[:, 1:]]
                for depth, hidden in enumerate(self.layerwise.states(inputs))
                if depth in self.depths
            ]
            states = torch.stack(at_depths, dim=1)
            if self._reserve(states.nbytes):
                self._states[key] = states
        return states

    def _reserve(self, size: int) -> bool:
        """Reserve memory for kept outputs; return False if there is not enough."""
        if size > self.bytes_left:
            return False
        self.bytes_left -= size
        return True


def _rows_of(batch: LossBatch) -> Iterator[LossBatch]:
    """Yield each row without padding as a batch of its own. A response of one token keeps a second
    position, of padding, because the layers do not read the last position, and need one other.
    """
    for index in range(len(batch.labels)):
        row, count = slice(index, index + 1), max(2, int(batch.is_labelled[index].sum()))
        ids = batch.prompt_ids[row, batch.prompt_mask[index].bool()]
        response_ids, labels = batch.response_ids[row, :count], batch.labels[row, :count]
        yield LossBatch(ids, torch.ones_like(ids), response_ids, labels)


def _key(ids: Tensor) -> bytes:
    return ids.cpu().numpy().tobytes()


def _joined(prompts: Sequence[EncodedPrompt], mask: Tensor) -> EncodedPrompt:
    """Return several prompts as one with the mask [prompts, prompt_len] of their batch."""

    def padded(tensors: Sequence[Tensor]) -> Tensor:
        """Join keys or values [1, heads, length, head_size], padded on the left."""
        missing = [mask.shape[1] - tensor.shape[2] for tensor in tensors]
        pairs = zip(tensors, missing, strict=True)
        return torch.cat([functional.pad(tensor, (0, 0, count, 0)) for tensor, count in pairs])

    cached = []  # keys and values of each layer
    for layers in zip(*(prompt.cache.layers for prompt in prompts), strict=True):
        cached.append(padded([layer.keys for layer in layers]))
        cached.append(padded([layer.values for layer in layers]))
    logits = torch.cat([prompt.first_logits for prompt in prompts])
    return EncodedPrompt(logits, kv_cache.filled_cache(cached), mask)


def spans(kept: Layers, num_layers: int) -> list[tuple[int, int]]:
    """Return the spans of layers around each gap, from layer `start` to before layer `end`: from
    the kept layer before the gap to the kept layer after it.

    Spans do not overlap: a kept layer between two gaps belongs to the first. If it is the last kept
    layer, the second gap has no other layer, so both gaps are in one span.

    >>> spans((0, 1, 4, 6), 8)
    [(1, 5), (5, 8)]
    """
    skipped = sorted({*range(num_layers)} - {*kept})
    found: list[tuple[int, int]] = []
    for gap_start, gap_end in layer_ranges(skipped) if skipped else ():
        before = gap_start - 1  # the kept layer before the gap; -1 without one
        previous_end = found[-1][1] if found else 0
        has_layer_before = before >= previous_end
        if gap_end < num_layers:
            found.append((before if has_layer_before else gap_start, gap_end + 1))
        elif has_layer_before:
            found.append((before, num_layers))
        else:  # the last kept layer is the end of the span before
            found[-1] = (found[-1][0], num_layers)
    return found
